#include "packed_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace koe5 {
namespace {

constexpr char kMagic[8] = {'K', 'O', 'E', '5', 'P', 'A', 'C', 'K'};
constexpr size_t kLongestName = 240;  // file systems allow 255 bytes, of which ".packed.XXXXXX" takes 14

// The end of a file. It is not at the beginning, so that the packed bytes start at a huge page boundary.
struct Footer {
  char magic[8];
  uint32_t layout, unused;
  int64_t k, n;
  uint64_t bytes, source, content;
};
static_assert(sizeof(Footer) == 56, "the footer is written as it is in memory and must have no padding");

Footer footer_of(const PackedIdentity& identity, uint64_t bytes, uint64_t content) {
  Footer footer{{}, identity.layout, 0, identity.k, identity.n, bytes, identity.source, content};
  std::memcpy(footer.magic, kMagic, sizeof kMagic);
  return footer;
}

struct Descriptor {
  explicit Descriptor(int number) : fd(number) {}
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  const int fd;
};

thread_local char problem[512] = "";
thread_local char problem_taken[512] = "";

void note_problem(const char* what, const std::string& file) {
  const char* const why = std::strerror(errno);
  if (problem[0] == '\0') std::snprintf(problem, sizeof problem, "%s %s: %s", what, file.c_str(), why);
}

uint64_t mixed(uint64_t lane, uint64_t word) {
  lane = (lane ^ word) * 0x9e3779b97f4a7c15;  // an odd factor, so that different words give different results
  return lane ^ lane >> 32;
}

bool write_all(int fd, const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t wrote = write(fd, at, bytes);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return false;
    at += wrote;
    bytes -= static_cast<size_t>(wrote);
  }
  return true;
}

// Writes a complete temporary file next to `file`. Returns its path, or an empty string on failure.
std::string write_temporary(const std::string& file, const PackedIdentity& identity, const Pages& packed) {
  std::string temporary = file + ".XXXXXX";
  const Descriptor made(mkostemp(temporary.data(), O_CLOEXEC));
  if (made.fd < 0) return "";
  const size_t bytes = packed.get_deleter().bytes;
  const Footer footer = footer_of(identity, bytes, hash_bytes(packed.get(), bytes));
  if (write_all(made.fd, packed.get(), bytes) && write_all(made.fd, &footer, sizeof footer)) return temporary;
  const int error = errno;
  unlink(temporary.c_str());
  errno = error;
  return "";
}

// Renames the temporary file to `file`, unless another process has created a valid one, which it may have mapped. Maps
// `file`. Returns null on failure.
Pages publish(const std::string& temporary, const std::string& file, const PackedIdentity& identity) {
  if (link(temporary.c_str(), file.c_str()) == 0) {
    unlink(temporary.c_str());
    return open_packed(file, identity);
  }
  Pages others = open_packed(file, identity);
  if (others == nullptr && rename(temporary.c_str(), file.c_str()) == 0) return open_packed(file, identity);
  const int error = errno;
  unlink(temporary.c_str());
  errno = error;
  return others;
}

}  // namespace

void Unmap::operator()(char* memory) const { munmap(memory, bytes); }

uint64_t hash_bytes(const void* data, size_t bytes, uint64_t seed) {
  const char* const at = static_cast<const char*>(data);
  uint64_t lanes[4] = {seed + 1, seed + 2, seed + 3, seed + 4};
  size_t done = 0;
  for (; done + 32 <= bytes; done += 32) {
    uint64_t words[4];
    std::memcpy(words, at + done, sizeof words);
    for (int i = 0; i < 4; ++i) lanes[i] = mixed(lanes[i], words[i]);
  }
  uint64_t rest[4] = {};
  std::memcpy(rest, at + done, bytes - done);
  uint64_t hash = bytes;
  for (int i = 0; i < 4; ++i) hash = mixed(hash, mixed(lanes[i], rest[i]));
  return hash;
}

std::string packed_file_name(const std::string& folder, const std::string& node) {
  std::string name;
  for (const char c : node) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_';
    char escaped[4];
    std::snprintf(escaped, sizeof escaped, "%%%02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
    name += plain ? std::string(1, c) : escaped;
  }
  if (folder.empty() || name.empty() || name.size() > kLongestName) return "";
  return folder + "/" + name + ".packed";
}

Pages open_packed(const std::string& file, const PackedIdentity& identity) {
  const Descriptor opened(open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (opened.fd < 0) return nullptr;
  struct stat state;
  Footer found;
  if (fstat(opened.fd, &state) != 0 || !S_ISREG(state.st_mode) || state.st_size <= static_cast<off_t>(sizeof found)) {
    return nullptr;
  }
  const size_t bytes = static_cast<size_t>(state.st_size) - sizeof found;
  if (pread(opened.fd, &found, sizeof found, static_cast<off_t>(bytes)) != sizeof found) return nullptr;
  const Footer wanted = footer_of(identity, bytes, found.content);
  if (std::memcmp(&found, &wanted, sizeof found) != 0) return nullptr;
  void* const mapped = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, opened.fd, 0);
  if (mapped == MAP_FAILED) return nullptr;
  Pages pages(static_cast<char*>(mapped), Unmap{bytes});
#ifdef MADV_HUGEPAGE
  // Must precede the first access: file systems that support it then read the file into huge pages.
  madvise(mapped, bytes, MADV_HUGEPAGE);
#endif
  // Writing a file does not force it to disk, so it may contain anything after a crash of the machine.
  return hash_bytes(mapped, bytes) == found.content ? std::move(pages) : nullptr;
}

Pages save_packed(const std::string& file, const PackedIdentity& identity, const Pages& packed) {
  const std::string temporary = write_temporary(file, identity, packed);
  Pages pages;
  if (!temporary.empty()) pages = publish(temporary, file, identity);
  if (pages == nullptr) note_problem("cannot store packed weights in", file);
  return pages;
}

const char* take_sharing_problem() {
  std::memcpy(problem_taken, problem, sizeof problem);
  problem[0] = '\0';
  return problem_taken;
}

}  // namespace koe5
