// Hides CPU features from a process: KOE5_MASK_CPUID=avx_vnni hides AMX and AVX512, =avx2 hides also AVX-VNNI, and =sse
// hides also AVX2.
//
//   cc -O2 -shared -fPIC -o mask_cpuid.so kernels/bench/mask_cpuid.c
//   KOE5_MASK_CPUID=avx2 LD_PRELOAD=./mask_cpuid.so python ...
//
// For tests, and for measuring ONNX Runtime and the kernels as if on such a CPU. Only the results of CPUID change; the
// instructions still work. Linux makes CPUID fault, if the CPU supports that (cpuid_fault in /proc/cpuinfo), and the
// signal handler below supplies the result. Threads and forked processes inherit the setting. Features that the dynamic
// loader and libc detected earlier are not hidden.
//
// On other CPUs, patch_cpuid.py replaces CPUID in copies of libraries by UD2, which also causes a signal. Only these
// copies then see the hidden features as missing:
//
//   python kernels/bench/patch_cpuid.py COPY_OF_A_LIBRARY...
//   KOE5_MASK_CPUID=avx2 KOE5_MASK_PATCHED=1 LD_PRELOAD=./mask_cpuid.so python ...
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

// arch/x86/include/uapi/asm/prctl.h
enum { kSetCpuid = 0x1012, kFaults = 0, kWorks = 1 };

static struct sigaction before_fault, before_ud2;
static int without_vnni, without_avx2;

// Clears the bits of AVX512 and AMX, and those of AVX-VNNI and AVX2 if requested. Source of the bits: Intel SDM, volume
// 2, CPUID leaf 7.
static void mask(uint32_t leaf, uint32_t subleaf, uint32_t r[4]) {
  if (leaf == 7 && subleaf == 0) {
    r[1] &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31);
    if (without_avx2) r[1] &= ~(1u << 5);
    r[2] &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14);
    r[3] &= ~(1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25);
  }
  if (leaf == 7 && subleaf == 1) {
    r[0] &= ~(1u << 5 | 1u << 21);
    if (without_vnni) r[0] &= ~(1u << 4);
  }
}

static void answer(int signal, siginfo_t* info, void* context) {
  greg_t* const g = ((ucontext_t*)context)->uc_mcontext.gregs;
  const uint8_t* const at = (const uint8_t*)g[REG_RIP];
  // CPUID causes a general protection fault (SI_KERNEL). After other faults, RIP may not point to readable code.
  const int is_ud2 = signal == SIGILL && at[0] == 0x0f && at[1] == 0x0b;
  if (!is_ud2 && (signal == SIGILL || info->si_code != SI_KERNEL || at[0] != 0x0f || at[1] != 0xa2)) {
    // Restore the previous handler, which then receives the repeated fault.
    sigaction(signal, signal == SIGILL ? &before_ud2 : &before_fault, NULL);
    return;
  }
  const uint32_t leaf = (uint32_t)g[REG_RAX], subleaf = (uint32_t)g[REG_RCX];
  uint32_t r[4];
  syscall(SYS_arch_prctl, kSetCpuid, kWorks);
  __cpuid_count(leaf, subleaf, r[0], r[1], r[2], r[3]);
  syscall(SYS_arch_prctl, kSetCpuid, kFaults);
  mask(leaf, subleaf, r);
  g[REG_RAX] = r[0], g[REG_RBX] = r[1], g[REG_RCX] = r[2], g[REG_RDX] = r[3];
  g[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
  const char* const level = getenv("KOE5_MASK_CPUID");
  if (level == NULL) return;
  without_avx2 = strcmp(level, "sse") == 0;
  without_vnni = without_avx2 || strcmp(level, "avx2") == 0;
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = answer;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, &before_fault);
  sigaction(SIGILL, &action, &before_ud2);
  if (getenv("KOE5_MASK_PATCHED") == NULL && syscall(SYS_arch_prctl, kSetCpuid, kFaults) != 0) {
    static const char words[] = "mask_cpuid: this CPU or kernel does not support CPUID faulting\n";
    if (write(2, words, sizeof words - 1) < 0) _exit(1);
    _exit(1);
  }
}
