"""Where methods meet training: module, objectives, plans of structure, optimizer, callbacks."""
