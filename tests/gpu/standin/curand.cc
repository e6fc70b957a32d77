// libcurand.so.10: ONNX Runtime's CUDA provider is linked to it, but the tests need none of its functions.
extern "C" int curand_standin() { return 0; }
