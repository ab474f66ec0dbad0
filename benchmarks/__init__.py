"""Published results reproduced: each folder is one study, with the command that runs it and what came out."""
