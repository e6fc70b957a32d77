// Packed weights in files, which all processes of a user map, so that the memory is shared. Does not depend on ONNX
// Runtime.
//
// A file holds the packed bytes and then a footer that identifies them. A file is complete before it gets its final
// name and is never modified, so any number of processes may start at once: the first file stays, and the other
// processes map it. A file that does not match its footer is replaced. Problems with files do not throw: without a
// file, each process keeps its own copy.
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
  uint64_t bytes;
  uint64_t source;  // hash of a sample of the original weights
};

// 64-bit hash at memory speed. Detects damage, not forgery.
uint64_t hash_bytes(const void* data, size_t bytes, uint64_t seed = 0);

// Returns the file name for a node's weights, or an empty string if the node's name cannot be used as a file name.
std::string packed_file_name(const std::string& folder, const std::string& node);

// Maps the packed bytes read-only. Returns null if the file is missing, damaged, or of other weights.
Pages open_packed(const std::string& file, const PackedIdentity& identity);

// Writes the file unless another process already did, and maps it. On failure, records the problem and returns null.
Pages save_packed(const std::string& file, const PackedIdentity& identity, const char* packed);

// Returns the first reason since the last call why this thread's sessions do not share weights, or an empty string.
const char* take_sharing_problem();

}  // namespace koe5
