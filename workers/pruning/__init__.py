"""Model surgery: channel groups, physical pruning, batch norm folded. Imports no ray and no tvm."""
