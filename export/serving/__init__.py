"""The parts of the embedded server, which follows TensorFlow Serving's protocol.

rest.py, grpc_api.py   how requests arrive: thin, one over the manager as the other
bodies.py    the bytes of requests: how many are held, how a body is read and unpacked
manager.py   which versions are in memory, and which of them a request means
batching.py  the queue of a version, and the threads that answer it in batches
model.py     a version in memory: the official messages in, the official messages out
images.py    encoded images on their way into the graph
json_api.py  the messages as JSON
json_reader.py, wire.py    JSON and messages, read within limits
errors.py    the one exception that a caller is told of
metrics.py, logs.py    what an operator sees
"""
