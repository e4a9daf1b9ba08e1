"""Networks, images and training. Imports neither ray nor tvm."""
