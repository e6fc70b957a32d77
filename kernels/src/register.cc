// Entry points of the library: RegisterCustomOps for ONNX Runtime, and the koe5_kernels_* functions for Python.
#include <sched.h>

#include <cstdlib>
#include <exception>
#include <list>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "cpu.h"
#include "linear.h"
#include "op.h"
#include "ops.h"
#include "packed_file.h"

#define KOE5_EXPORT extern "C" __attribute__((visibility("default")))

namespace koe5 {
namespace {

constexpr const char* kDomain = "koe5";
constexpr const char* kThreadsKey = "koe5.threads";
constexpr const char* kPackedFolderKey = "koe5.packed_weights";
constexpr int kOpSetVersion = 4;

const OpDefinition* const kOps[] = {&kNormQuantize, &kProjectQkv, &kProjectAddNorm, &kProjectGelu,
                                    &kRaggedAttention, &kPoolMean};

OrtStatus* failure(const OrtApi* api, const std::string& text) {
  return abi::call<abi::CreateStatus>(api, abi::kInvalidArgument, text.c_str());
}

// The kernel of one node.
struct Instance {
  const OrtApi* api;
  std::string name;  // of operator and node, for error messages
  int threads;
  std::unique_ptr<Kernel> kernel;
};

// The number of threads and the folder of packed weights (or an empty string), from the session options.
using Settings = std::pair<int, std::string>;

// Adapts an OpDefinition to ONNX Runtime's custom operator struct.
struct Op : OrtCustomOp {
  Op(const OpDefinition& definition, const Settings& settings);
  const OpDefinition& definition;
  const Settings& settings;
};

const Op& self(const OrtCustomOp* op) { return *static_cast<const Op*>(op); }

// Runs `f` and converts an exception to a status whose message starts with `where`.
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
  const auto& [threads, packed_folder] = self(op).settings;
  const KernelInfo info(api, ort_info, threads, packed_folder);
  auto instance = std::make_unique<Instance>(Instance{api, definition.name, threads, nullptr});
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

Op::Op(const OpDefinition& d, const Settings& s) : OrtCustomOp{}, definition(d), settings(s) {
  version = abi::kApiVersion;
  GetName = [](const OrtCustomOp* op) { return self(op).definition.name; };
  GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // CPU
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

// Returns the value of a session config entry, or an empty string if it is not set.
std::string config_entry(const OrtApi* api, const OrtSessionOptions* options, const char* key) {
  int found = 0;
  size_t size = 0;
  std::string text;
  OrtStatus* status = abi::call<abi::HasSessionConfigEntry>(api, options, key, &found);
  if (status == nullptr && found != 0) {
    status = abi::call<abi::GetSessionConfigEntry>(api, options, key, static_cast<char*>(nullptr), &size);
  }
  if (status == nullptr && size > 0) {
    text.resize(size);
    status = abi::call<abi::GetSessionConfigEntry>(api, options, key, text.data(), &size);
  }
  if (status != nullptr) abi::call<abi::ReleaseStatus>(api, status);
  return status == nullptr ? text.c_str() : "";  // without the terminating zero
}

// If the session options do not set the number of threads, it is the number of CPUs that this process may use.
Settings settings_of(const OrtApi* api, const OrtSessionOptions* options) {
  const int threads = std::atoi(config_entry(api, options, kThreadsKey).c_str());
  return {threads > 0 ? threads : allowed_cpus(), config_entry(api, options, kPackedFolderKey)};
}

struct Domain {
  OrtCustomOpDomain* handle = nullptr;
  std::list<Op> ops;
};

// Sets `out` to the domain for these settings. Domains are never freed, because sessions refer to them.
OrtStatus* domain_for(const OrtApi* api, const Settings& settings, OrtCustomOpDomain** out) {
  static std::mutex mutex;
  static auto& domains = *new std::map<Settings, Domain>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto place = domains.try_emplace(settings).first;
  Domain& domain = place->second;
  *out = domain.handle;
  if (domain.handle != nullptr) return nullptr;
  OrtStatus* status = abi::call<abi::CreateCustomOpDomain>(api, kDomain, out);
  for (const OpDefinition* definition : kOps) {
    if (status != nullptr) break;
    domain.ops.emplace_back(*definition, place->first);
    status = abi::call<abi::CustomOpDomainAdd>(api, *out, static_cast<const OrtCustomOp*>(&domain.ops.back()));
  }
  if (status == nullptr) domain.handle = *out;
  return status;
}

// Creates the error with version 1 of the API, which every ONNX Runtime has.
OrtStatus* too_old(const OrtApiBase* base) {
  const OrtApi* first = base->GetApi(1);
  if (first == nullptr) return nullptr;
  return failure(first, "koe5-onnx-kernels requires version " + std::to_string(abi::kApiVersion) +
                            " of ONNX Runtime's C API, but onnxruntime " + base->GetVersionString() +
                            " is older. Install onnxruntime 1.23 or later");
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
    status = domain_for(api, settings_of(api, options), &domain);
    if (status == nullptr) status = abi::call<abi::AddCustomOpDomain>(api, options, domain);
  });
  return thrown != nullptr ? thrown : status;
}

// Returns the name of the instruction set in use (see cpu.h).
KOE5_EXPORT const char* koe5_kernels_level() { return koe5::level_name(koe5::cpu_level()); }

// Returns one line with the reason if the level is "none"; otherwise an empty string.
KOE5_EXPORT const char* koe5_kernels_unavailable() { return koe5::why_unavailable(); }

// Returns the version of the operator set, which graphs declare in their opset imports.
KOE5_EXPORT int koe5_kernels_version() { return koe5::kOpSetVersion; }

// Returns the version of the packed weight layout. Files of another version are replaced.
KOE5_EXPORT int koe5_kernels_packed_layout() { return static_cast<int>(koe5::packed_layout(koe5::cpu_level())); }

// Returns why a session created by this thread does not share its packed weights, and clears the reason. Returns an
// empty string if there is none.
KOE5_EXPORT const char* koe5_kernels_sharing_problem() { return koe5::take_sharing_problem(); }
