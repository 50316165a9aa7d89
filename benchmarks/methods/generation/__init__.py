"""Generation: races of the engine, the client, the store and packed chat data."""
