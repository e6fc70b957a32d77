// Packed weights in files, which all processes of a user map and so hold once. Knows nothing of ONNX Runtime.
//
// A file holds the packed bytes, from its beginning, and then a footer that says what they are. It gets its name when it
// is whole and is never written again, so that any number of processes may start at once: the first one's file stays,
// and each maps what it finds. Whatever is not as the footer should say is replaced. Nothing here throws for a file:
// without one, each process has its own copy.
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

// What a file must hold to be the one that is wanted.
struct PackedIdentity {
  uint32_t layout;
  int64_t k, n;
  uint64_t bytes;
  uint64_t source;  // hash of some of the weights that it is made from
};

// Of 64 bits, as fast as memory is read. Finds damage, not forgery.
uint64_t hash_bytes(const void* data, size_t bytes, uint64_t seed = 0);

// The file of a node's weights; empty where the node's name cannot name one.
std::string packed_file_name(const std::string& folder, const std::string& node);

// The packed bytes, read only; null where the file is absent, damaged or another.
Pages open_packed(const std::string& file, const PackedIdentity& identity);

// Writes the file unless another process was faster, and maps it; null with a noted problem where it cannot.
Pages save_packed(const std::string& file, const PackedIdentity& identity, const char* packed);

// Why weights of this thread's sessions are not shared, the first reason since the last call; empty where they are.
const char* take_sharing_problem();

}  // namespace koe5
