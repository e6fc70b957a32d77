// libcurand.so.10: required at load time, never called.
extern "C" int curand_standin() { return 0; }
