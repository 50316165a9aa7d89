"""Tasks with verified answers: of reasoning-gym, and of the user's own files."""
