// The library's door: ONNX Runtime calls RegisterCustomOps, Python asks the koe5_kernels functions.
#include <sched.h>

#include <cstdlib>
#include <exception>
#include <list>
#include <map>
#include <mutex>
#include <string>

#include "cpu.h"
#include "op.h"
#include "ops.h"

#define KOE5_EXPORT extern "C" __attribute__((visibility("default")))

namespace koe5 {
namespace {

constexpr const char* kDomain = "koe5";
constexpr const char* kThreadsKey = "koe5.threads";
constexpr int kOpSetVersion = 1;

const OpDefinition* const kOps[] = {&kNormQuantize, &kProjectQkv, &kProjectAddNorm, &kProjectGelu,
                                    &kRaggedAttention, &kPoolMean};

OrtStatus* failure(const OrtApi* api, const std::string& text) {
  return abi::call<abi::CreateStatus>(api, abi::kInvalidArgument, text.c_str());
}

// A kernel with what its calls need.
struct Instance {
  const OrtApi* api;
  std::string name;  // operator and node, for errors
  int threads;
  std::unique_ptr<Kernel> kernel;
};

// A custom operator as ONNX Runtime wants it, with our definition behind it.
struct Op : OrtCustomOp {
  Op(const OpDefinition& definition, int threads);
  const OpDefinition& definition;
  const int threads;
};

const Op& self(const OrtCustomOp* op) { return *static_cast<const Op*>(op); }

// Runs `f`; an exception becomes a status that says where it happened.
template <class F>
OrtStatus* guarded(const OrtApi* api, const std::string& where, F&& f) {
  try {
    f();
    return nullptr;
  } catch (const std::exception& error) {
    return failure(api, where + ": " + error.what());
  }
}

std::string place(const OpDefinition& definition, const KernelInfo& info) {
  return std::string("koe5.") + definition.name + " (node '" + info.node_name() + "')";
}

OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* ort_info, void** kernel) {
  const OpDefinition& definition = self(op).definition;
  const KernelInfo info(api, ort_info, self(op).threads);
  auto instance = std::make_unique<Instance>(Instance{api, definition.name, self(op).threads, nullptr});
  OrtStatus* status = guarded(api, definition.name, [&] { instance->name = place(definition, info); });
  if (status != nullptr) return status;
  status = guarded(api, instance->name, [&] { instance->kernel = definition.create(info); });
  if (status == nullptr) *kernel = instance.release();
  return status;
}

OrtStatus* compute(void* kernel, OrtKernelContext* ort_context) {
  const Instance& instance = *static_cast<Instance*>(kernel);
  return guarded(instance.api, instance.name, [&] {
    KernelContext context(instance.api, ort_context, instance.threads);
    instance.kernel->compute(context);
  });
}

Op::Op(const OpDefinition& d, int n) : OrtCustomOp{}, definition(d), threads(n) {
  version = abi::kApiVersion;
  GetName = [](const OrtCustomOp* op) { return self(op).definition.name; };
  GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU's
  GetInputType = [](const OrtCustomOp* op, size_t i) { return static_cast<int>(self(op).definition.inputs[i]); };
  GetInputTypeCount = [](const OrtCustomOp* op) { return self(op).definition.inputs.size(); };
  GetOutputType = [](const OrtCustomOp* op, size_t i) { return static_cast<int>(self(op).definition.outputs[i]); };
  GetOutputTypeCount = [](const OrtCustomOp* op) { return self(op).definition.outputs.size(); };
  GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return abi::kRequired; };
  GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return abi::kRequired; };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return abi::kDefaultMemory; };
  GetStartVersion = [](const OrtCustomOp*) { return kOpSetVersion; };
  GetEndVersion = [](const OrtCustomOp*) { return kOpSetVersion; };
  CreateKernelV2 = create_kernel;
  KernelComputeV2 = compute;
  KernelDestroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
}

int allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

// How many threads the session has: what its options say under koe5.threads, else one a CPU.
int session_threads(const OrtApi* api, const OrtSessionOptions* options) {
  int found = 0;
  char text[16] = "";
  size_t size = sizeof(text);
  OrtStatus* status = abi::call<abi::HasSessionConfigEntry>(api, options, kThreadsKey, &found);
  if (status == nullptr && found != 0) {
    status = abi::call<abi::GetSessionConfigEntry>(api, options, kThreadsKey, static_cast<char*>(text), &size);
  }
  if (status != nullptr) abi::call<abi::ReleaseStatus>(api, status);
  const int threads = std::atoi(text);
  return threads > 0 ? threads : allowed_cpus();
}

struct Domain {
  OrtCustomOpDomain* handle = nullptr;
  std::list<Op> ops;
};

// One domain for each thread count, kept while the process lives: sessions refer to it.
OrtStatus* domain_for(const OrtApi* api, int threads, OrtCustomOpDomain** out) {
  static std::mutex mutex;
  static auto& domains = *new std::map<int, Domain>;
  const std::lock_guard<std::mutex> lock(mutex);
  Domain& domain = domains[threads];
  *out = domain.handle;
  if (domain.handle != nullptr) return nullptr;
  OrtStatus* status = abi::call<abi::CreateCustomOpDomain>(api, kDomain, out);
  for (const OpDefinition* definition : kOps) {
    if (status != nullptr) break;
    domain.ops.emplace_back(*definition, threads);
    status = abi::call<abi::CustomOpDomainAdd>(api, *out, static_cast<const OrtCustomOp*>(&domain.ops.back()));
  }
  if (status == nullptr) domain.handle = *out;
  return status;
}

// Every ONNX Runtime has version 1: enough to say what is wrong.
OrtStatus* too_old(const OrtApiBase* base) {
  const OrtApi* first = base->GetApi(1);
  if (first == nullptr) return nullptr;
  return failure(first, "koe5-onnx-kernels needs version " + std::to_string(abi::kApiVersion) +
                            " of ONNX Runtime's C API (onnxruntime 1.23 or later) and found onnxruntime " +
                            base->GetVersionString() + ": update onnxruntime");
}

}  // namespace
}  // namespace koe5

KOE5_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace koe5;
  const OrtApi* api = base->GetApi(abi::kApiVersion);
  if (api == nullptr) return too_old(base);
  if (cpu_level() == Level::none) return failure(api, std::string("koe5-onnx-kernels: ") + why_unavailable());
  OrtCustomOpDomain* domain = nullptr;
  OrtStatus* status = nullptr;
  OrtStatus* thrown = guarded(api, "koe5-onnx-kernels", [&] {
    status = domain_for(api, session_threads(api, options), &domain);
    if (status == nullptr) status = abi::call<abi::AddCustomOpDomain>(api, options, domain);
  });
  return thrown != nullptr ? thrown : status;
}

// The instruction set in use, by its name in cpu.h.
KOE5_EXPORT const char* koe5_kernels_level() { return koe5::level_name(koe5::cpu_level()); }

// Why the level is "none", in one line; empty where it is not.
KOE5_EXPORT const char* koe5_kernels_unavailable() { return koe5::why_unavailable(); }

// Version of the operator set: graphs name it in their opset imports.
KOE5_EXPORT int koe5_kernels_version() { return koe5::kOpSetVersion; }
