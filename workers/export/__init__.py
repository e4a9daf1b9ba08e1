"""The torch side of what a run hands over. Imports neither ray nor tvm."""
