// Memory of packed weights, and that of the graph's weights given back.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <new>
#include <vector>

#include "linear.h"

namespace koe5 {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// Zeroed pages; where they fill huge pages, from the start of one: fewer misses of address translation.
char* map_pages(size_t bytes) {
  const size_t slack = bytes >= kHugePage ? kHugePage : 0;
  void* const mapped = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  if (slack == 0) return static_cast<char*>(mapped);
  const uintptr_t start = reinterpret_cast<uintptr_t>(mapped);
  const uintptr_t aligned = (start + kHugePage - 1) & ~uintptr_t{kHugePage - 1};
  if (aligned > start) munmap(mapped, aligned - start);
  if (start + slack > aligned) munmap(reinterpret_cast<void*>(aligned + bytes), start + slack - aligned);
#ifdef MADV_HUGEPAGE
  madvise(reinterpret_cast<void*>(aligned), bytes, MADV_HUGEPAGE);
#endif
  return reinterpret_cast<char*>(aligned);
}

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

size_t whole_pages(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

// One task of packing: up to 64 columns of a part, that begin at `column` of the whole.
struct Strip {
  const PackedWeight::Part* part;
  int64_t from, columns, column;
};

std::vector<Strip> strips_of(const PackedWeight::Part* parts, int64_t count) {
  std::vector<Strip> strips;
  int64_t column = 0;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t from = 0; from < parts[i].n; from += 64) {
      const int64_t columns = parts[i].n - from < 64 ? parts[i].n - from : 64;
      strips.push_back({parts + i, from, columns, column});
      column += columns;
    }
  }
  return strips;
}

}  // namespace

void Unmap::operator()(char* memory) const { munmap(memory, bytes); }

PackedWeight::PackedWeight(const Part* parts, int64_t count, int64_t k) {
  int64_t n = 0;
  for (int64_t i = 0; i < count; ++i) n += parts[i].n;
  const int64_t padded_k = round_up(k, kStepDepth), padded_n = round_up(n, kPanelColumns);
  const size_t bytes = whole_pages(static_cast<size_t>(padded_n * (padded_k + 8)));
  memory_ = std::unique_ptr<char, Unmap>(map_pages(bytes), Unmap{bytes});
  int8_t* const panels = reinterpret_cast<int8_t*>(memory_.get());
  float* const scales = reinterpret_cast<float*>(panels + padded_n * padded_k);
  int32_t* const sums = reinterpret_cast<int32_t*>(scales + padded_n);
  view_ = {panels, scales, sums, k, padded_k, n};
  for (const Strip& strip : strips_of(parts, count)) {
    int8_t* blocks[4];
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t sixteen = strip.column / 16 + i;
      blocks[i] = panels + sixteen / 2 * kPanelColumns * padded_k + sixteen % 2 * kBlockBytes;
    }
    pack_columns(strip.part->weight + strip.from, strip.part->n, k, strip.columns, blocks, sums + strip.column);
    for (int64_t i = 0; i < strip.columns; ++i) scales[strip.column + i] = strip.part->scale[strip.from + i];
  }
}

namespace {

// Whether [first, last) lies in one mapping of a file, by the process's own table of mappings.
bool is_file_mapping(uintptr_t first, uintptr_t last) {
  std::FILE* const maps = std::fopen("/proc/self/maps", "re");
  if (maps == nullptr) return false;
  char line[8192];
  bool found = false;
  while (!found && std::fgets(line, sizeof line, maps) != nullptr) {
    unsigned long start = 0, end = 0, inode = 0;
    if (std::sscanf(line, "%lx-%lx %*s %*x %*x:%*x %lu", &start, &end, &inode) != 3) continue;
    found = start <= first && last <= end && inode != 0;
  }
  std::fclose(maps);
  return found;
}

// Whether each page is still the file's: a private mapping that was written to has pages of its own, whose contents
// giving back would lose. Bits: https://docs.kernel.org/admin-guide/mm/pagemap.html
bool are_pages_of_the_file(uintptr_t first, uintptr_t last, uintptr_t page) {
  constexpr uint64_t kPresent = uint64_t{1} << 63, kSwapped = uint64_t{1} << 62, kOfFile = uint64_t{1} << 61;
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (pagemap < 0) return false;
  uint64_t entries[512];
  bool all = true;
  for (uintptr_t number = first / page; all && number < last / page;) {
    const uintptr_t left = last / page - number, wanted = left < 512 ? left : 512;
    const ssize_t bytes = pread(pagemap, entries, wanted * sizeof(uint64_t), static_cast<off_t>(number * sizeof(uint64_t)));
    all = bytes == static_cast<ssize_t>(wanted * sizeof(uint64_t));
    for (uintptr_t i = 0; all && i < wanted; ++i) {
      all = (entries[i] & kSwapped) == 0 && ((entries[i] & kPresent) == 0 || (entries[i] & kOfFile) != 0);
    }
    number += wanted;
  }
  close(pagemap);
  return all;
}

}  // namespace

void release_mapped_pages(const void* data, size_t bytes) {
#if defined(__linux__)
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
  if (first >= last || !is_file_mapping(first, last) || !are_pages_of_the_file(first, last, page)) return;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
#endif
}

}  // namespace koe5
