// Packs weights into new memory or a file, and releases the pages of the graph's original weights.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "linear.h"

namespace koe5 {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// Maps zeroed pages. If they fill at least one huge page, they start at the boundary of one, which reduces TLB misses.
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


size_t whole_pages(size_t bytes) {
  return static_cast<size_t>(round_up(static_cast<int64_t>(bytes), sysconf(_SC_PAGESIZE)));
}

// Up to 64 columns that are packed together. The first is column `from` of `part` and column `column` of the packed
// weight.
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

// Returns a hash of all scales and of the first and last row of the weights. It does not read all weights, which would
// cost as much as packing them.
uint64_t source_of(const PackedWeight::Part* parts, int64_t count, int64_t k) {
  uint64_t hash = 0;
  for (int64_t i = 0; i < count; ++i) {
    const size_t n = static_cast<size_t>(parts[i].n);
    hash = hash_bytes(parts[i].scale, n * sizeof(float), hash);
    hash = hash_bytes(parts[i].weight, n, hash);
    hash = hash_bytes(parts[i].weight + (k - 1) * parts[i].n, n, hash);
  }
  return hash;
}

// Addresses in the memory of a packed weight: panels, scales and column sums; for PackedLayout::avx2 also the ends of
// the columns' remainders, after a zero, and the remainders.
struct Places {
  PackedLayout layout;
  int64_t padded_k, padded_n;

  Places(Level level, int64_t k, int64_t n)
      : layout(packed_layout(level)), padded_k(round_up(k, kStepDepth)), padded_n(round_up(n, kPanelColumns)) {}
  size_t bytes(int64_t remainders) const {
    int64_t bytes = padded_n * (padded_k + 8);
    if (layout == PackedLayout::avx2) bytes = remainders_at() + remainders * static_cast<int64_t>(sizeof(Remainders));
    return whole_pages(static_cast<size_t>(bytes));
  }
  int64_t remainders_at() const { return padded_n * (padded_k + 12) + kCacheLine; }
  int8_t* panels(char* memory) const { return reinterpret_cast<int8_t*>(memory); }
  float* scales(char* memory) const { return reinterpret_cast<float*>(memory + padded_n * padded_k); }
  int32_t* sums(char* memory) const { return reinterpret_cast<int32_t*>(memory + padded_n * (padded_k + 4)); }
  int32_t* ends(char* memory) const { return reinterpret_cast<int32_t*>(memory + padded_n * (padded_k + 8)) + 1; }
  Remainders* remainders(char* memory) const { return reinterpret_cast<Remainders*>(memory + remainders_at()); }
};

#if defined(__x86_64__)
// Takes remainders from the packed weights of 16 columns and appends them to those of the columns before.
void append_remainders(int8_t* blocks, int64_t k, int64_t column, const Places& places, char* memory,
                       std::vector<Remainders>& found) {
  int32_t counts[16], *const ends = places.ends(memory) + column;
  limit_pairs(blocks, k, found.data(), counts);
  for (int64_t i = 0; i < 16; ++i) {
    const int32_t twos = (counts[i] + 1) / 2;
    std::copy_n(found.data() + i * (k / 4), twos, places.remainders(memory) + ends[i - 1]);
    ends[i] = ends[i - 1] + twos;
  }
}
#endif

void pack(const PackedWeight::Part* parts, int64_t count, int64_t k, const Places& places, char* memory) {
  int8_t* const panels = places.panels(memory);
  float* const scales = places.scales(memory);
  int32_t* const sums = places.sums(memory);
  std::vector<Remainders> found(places.layout == PackedLayout::avx2 ? static_cast<size_t>(4 * k) : 0);
  for (const Strip& strip : strips_of(parts, count)) {
    int8_t* blocks[4];
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t sixteen = strip.column / 16 + i;
      blocks[i] = panels + sixteen / 2 * kPanelColumns * places.padded_k + sixteen % 2 * kBlockBytes;
    }
    pack_columns(strip.part->weight + strip.from, strip.part->n, k, strip.columns, blocks, sums + strip.column);
    for (int64_t i = 0; i < strip.columns; ++i) scales[strip.column + i] = strip.part->scale[strip.from + i];
#if defined(__x86_64__)
    for (int64_t i = 0; i < strip.columns && !found.empty(); i += 16) {
      append_remainders(blocks[i / 16], k, strip.column + i, places, memory, found);
    }
#endif
  }
}

// Packs into memory with room for a remainder of every pair, then unmaps the pages after the last remainder.
Pages packed(const PackedWeight::Part* parts, int64_t count, int64_t k, int64_t n, const Places& places) {
  const size_t most = places.bytes(n * (k / 4));
  Pages pages(map_pages(most), Unmap{most});
  pack(parts, count, k, places, pages.get());
  const size_t used = places.layout == PackedLayout::avx2 ? places.bytes(places.ends(pages.get())[n - 1]) : most;
  if (used < most) munmap(pages.get() + used, most - used);
  pages.get_deleter().bytes = used;
  return pages;
}

}  // namespace

PackedLayout packed_layout([[maybe_unused]] Level level) {
#if defined(__aarch64__)
  return PackedLayout::arm;
#else
  return level == Level::avx2 ? PackedLayout::avx2 : PackedLayout::x86;
#endif
}

PackedWeight::PackedWeight(Level level, const Part* parts, int64_t count, int64_t k, const std::string& file) {
  int64_t n = 0;
  for (int64_t i = 0; i < count; ++i) n += parts[i].n;
  const Places places(level, k, n);
  const bool shared = !file.empty();
  const PackedIdentity identity{static_cast<uint32_t>(places.layout), k, n, shared ? source_of(parts, count, k) : 0};
  if (shared) memory_ = open_packed(file, identity);
  if (memory_ == nullptr) {
    memory_ = packed(parts, count, k, n, places);
    Pages kept = shared ? save_packed(file, identity, memory_) : nullptr;
    if (kept != nullptr) memory_ = std::move(kept);
  }
  char* const memory = memory_.get();
  view_ = {places.panels(memory),     places.scales(memory), places.sums(memory), k, places.padded_k, n,
           places.remainders(memory), places.ends(memory)};
}

namespace {

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

// Returns true if [first, last) lies in a single file mapping, according to /proc/self/maps.
bool is_file_mapping(uintptr_t first, uintptr_t last) {
  const File maps(std::fopen("/proc/self/maps", "re"));
  char line[8192];
  while (maps != nullptr && std::fgets(line, sizeof line, maps.get()) != nullptr) {
    unsigned long start = 0, end = 0, inode = 0;
    if (std::sscanf(line, "%lx-%lx %*s %*x %*x:%*x %lu", &start, &end, &inode) != 3) continue;
    if (start <= first && last <= end) return inode != 0;
  }
  return false;
}

// Returns true if no page in [first, last) was modified: ONNX Runtime's mappings are private and writable, and
// releasing a modified page would lose its contents. Bits of an entry: 61 page of a file, 62 swapped, 63 present.
// Source: https://docs.kernel.org/admin-guide/mm/pagemap.html
bool is_as_in_file(uintptr_t first, uintptr_t last, uintptr_t page) {
  const File pagemap(std::fopen("/proc/self/pagemap", "rbe"));
  if (pagemap == nullptr || std::fseek(pagemap.get(), static_cast<long>(first / page * 8), SEEK_SET) != 0) return false;
  std::vector<uint64_t> entries((last - first) / page);
  if (std::fread(entries.data(), 8, entries.size(), pagemap.get()) != entries.size()) return false;
  return std::all_of(entries.begin(), entries.end(), [](uint64_t entry) {
    const bool of_file = (entry >> 61 & 1) != 0, somewhere = (entry >> 62) != 0;
    return of_file || !somewhere;
  });
}

}  // namespace

void release_mapped_pages(const void* data, size_t bytes) {
#if defined(__linux__)
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
  if (first >= last || !is_file_mapping(first, last) || !is_as_in_file(first, last, page)) return;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
#endif
}

}  // namespace koe5
