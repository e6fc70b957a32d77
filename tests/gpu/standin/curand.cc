// libcurand.so.10: ONNX Runtime's library is linked to it, but never calls it.
extern "C" int curand_standin() { return 0; }
