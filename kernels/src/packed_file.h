// Packed weights in files. Processes map the same file, so that they share its memory. Does not depend on ONNX Runtime.
//
// A file contains the packed bytes and then a footer that identifies them. It is complete before it gets its final
// name, and it is never modified. If several processes start at once, the first file stays and all processes map it. A
// file that is damaged or contains other weights is replaced. Errors with files do not throw; the process then keeps
// its own copy of the weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace koe5 {

struct Unmap {
  size_t bytes = 0;
  void operator()(char* memory) const;
};
using Pages = std::unique_ptr<char, Unmap>;

// Identity of the expected packed weights.
struct PackedIdentity {
  uint32_t layout;
  int64_t k, n;
  uint64_t source;  // hash of a sample of the original weights
};

// Returns a 64-bit hash that detects damage, not forgery.
uint64_t hash_bytes(const void* data, size_t bytes, uint64_t seed = 0);

// Returns the path for a node's weights, or an empty string if `folder` is empty or `node` is empty or too long.
std::string packed_file_name(const std::string& folder, const std::string& node);

// Maps the packed bytes read-only. Returns null if the file is missing, damaged or contains other weights.
Pages open_packed(const std::string& file, const PackedIdentity& identity);

// Writes the file, unless another process has written it, and maps it. On failure, records the reason and returns null.
Pages save_packed(const std::string& file, const PackedIdentity& identity, const Pages& packed);

// Returns the first reason that save_packed recorded in this thread since the last call, or an empty string.
const char* take_sharing_problem();

}  // namespace koe5
