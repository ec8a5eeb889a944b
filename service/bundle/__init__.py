"""The bundle: one trained model as a folder that explains itself.

Knows the file format, the feature schema, the ONNX Runtime predictor and the explanation. Knows nothing of HTTP.
Import the submodule you need: only `predictor` loads onnxruntime, only what reads and writes tables pyarrow.

    schema       raw record -> arrays            manifest   the contents of manifest.json
    store        the folder on disk              predictor  runs the graph
    explanation  outputs -> who said what        answers    outputs -> the prediction a client reads
    tables       rows of tables -> records       features   the kinds of features a schema is made of
    validity     how far explanations can be trusted
"""
