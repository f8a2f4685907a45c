"""The parts of the embedded server, which follows TensorFlow Serving's protocol.

errors.py    the one exception that a caller is told of
model.py     a version in memory: the official messages in, the official messages out
manager.py   which versions are in memory, and which of them a request means
json_api.py  the same messages as JSON
rest.py, grpc_api.py   how requests arrive: thin, one over the manager as the other
"""
