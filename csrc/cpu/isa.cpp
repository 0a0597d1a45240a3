// What the processor can execute, and which kernels run.
#include "isa.h"

#include <algorithm>
#include <atomic>

#if defined(__x86_64__) && !defined(_MSC_VER)  // whose intrin.h has another __cpuid
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if defined(_MSC_VER) && defined(_M_X64)
#include <immintrin.h>
#include <intrin.h>
#endif

#include "../common.h"
#include "../splip.h"

namespace splip::cpu {
namespace {

constexpr Scanner kScalar = {scan_scalar, kGroup, kStepDims};
#ifdef SPLIP_X86_KERNELS
constexpr Scanner kAvx2 = {scan_avx2, kGroup, kStepDims, kTogether};
#ifdef SPLIP_AVXVNNI_KERNELS
constexpr Scanner kAvxVnni = {scan_avxvnni, kGroup, kStepDims};
constexpr Scanner kAvxVnniEmulated = {scan_avxvnni_emulated, kGroup, kStepDims};
#endif
constexpr Scanner kAvx512 = {scan_avx512, kGroup, kStepDims};
#ifdef SPLIP_AMX_KERNELS
constexpr Scanner kAmx = {scan_amx, kTileQueries, kDimAlign};
#endif
constexpr Scanner kEmulated = {scan_amx_emulated, kTileQueries, kDimAlign};
#endif
#ifdef SPLIP_ARM_KERNELS
constexpr Scanner kNeon = {scan_neon, kGroup, kStepDims};
constexpr Scanner kDotprod = {scan_dotprod, kGroup, kStepDims};
#ifdef SPLIP_I8MM_KERNELS
constexpr Scanner kI8mm = {scan_i8mm, kGroup, 2 * kStepDims};
#endif
#endif

// From the slowest to the fastest, but for the emulations, which are never chosen by itself.
constexpr Kernels kLevels[] = {
#ifdef SPLIP_X86_KERNELS
    {"amx-emulated", kEmulated, kEmulated, dot_avx512, quantise_avx512, &kLayerNormAvx512,
     dots_avx512, &kPackAvx2},
#ifdef SPLIP_AVXVNNI_KERNELS
    {"avxvnni-emulated", kAvxVnniEmulated, kAvxVnniEmulated, dot_avx2, quantise_avx2,
     &kLayerNormAvx2, dots_avx2, &kPackAvx2},
#endif
#endif
    {"scalar", kScalar, kScalar, dot_scalar, quantise_scalar, &kLayerNormScalar},
#ifdef SPLIP_X86_KERNELS
    {"avx2", kAvx2, kAvx2, dot_avx2, quantise_avx2, &kLayerNormAvx2, dots_avx2, &kPackAvx2},
#ifdef SPLIP_AVXVNNI_KERNELS
    {"avxvnni", kAvxVnni, kAvxVnni, dot_avx2, quantise_avx2, &kLayerNormAvx2, dots_avx2,
     &kPackAvx2},
#endif
    {"avx512", kAvx512, kAvx512, dot_avx512, quantise_avx512, &kLayerNormAvx512, dots_avx512,
     &kPackAvx2},
#ifdef SPLIP_AMX_KERNELS
    {"amx", kAmx, kAvx512, dot_avx512, quantise_avx512, &kLayerNormAvx512, dots_avx512, &kPackAvx2},
#endif
#endif
#ifdef SPLIP_ARM_KERNELS
    // Every 64-bit ARM has NEON: the compiler vectorises LayerNorm's portable rows with it.
    {"neon", kNeon, kNeon, dot_neon, quantise_neon, &kLayerNormScalar},
    {"dotprod", kDotprod, kDotprod, dot_neon, quantise_neon, &kLayerNormScalar},
#ifdef SPLIP_I8MM_KERNELS
    {"i8mm", kI8mm, kDotprod, dot_neon, quantise_neon, &kLayerNormScalar},
#endif
#endif
};

#ifdef __aarch64__
// Beyond NEON, what the system says that the processor has and programs may use.
bool arm_has(const char* feature) {
#if defined(__linux__)
  constexpr unsigned long kDotprodBit = 1ul << 20, kI8mmBit = 1ul << 13;  // asm/hwcap.h
  if (std::string("dotprod") == feature) return (getauxval(AT_HWCAP) & kDotprodBit) != 0;
  return (getauxval(AT_HWCAP2) & kI8mmBit) != 0;
#elif defined(__APPLE__)
  const bool dotprod = std::string("dotprod") == feature;
  int value = 0;
  size_t size = sizeof(value);
  const char* name = dotprod ? "hw.optional.arm.FEAT_DotProd" : "hw.optional.arm.FEAT_I8MM";
  // A system too old to know the name (macOS 11): every Mac with this processor has dot products.
  if (sysctlbyname(name, &value, &size, nullptr, 0) != 0) return dotprod;
  return value != 0;
#else
  (void)feature;
  return false;
#endif
}
#endif

#if defined(_MSC_VER) && defined(_M_X64)
// What __builtin_cpu_supports says elsewhere: the processor has it, and Windows saves its
// registers.
std::vector<std::string> sets_of_windows() {
  int basic[4] = {}, extended[4] = {};  // EAX, EBX, ECX, EDX
  __cpuidex(basic, 1, 0);
  __cpuidex(extended, 7, 0);
  const auto has = [](int bits, int bit) { return (static_cast<unsigned>(bits) >> bit & 1u) != 0; };
  const bool saves = has(basic[2], 27);
  const unsigned long long state = saves ? _xgetbv(0) : 0;
  const bool avx = (state & 0x6) == 0x6, avx512 = (state & 0xe6) == 0xe6;
  std::vector<std::string> sets;
  if (has(basic[2], 20)) sets.push_back("sse4.2");
  if (avx && has(extended[1], 5)) sets.push_back("avx2");
  if (avx && has(basic[2], 12)) sets.push_back("fma");
  if (avx512 && has(extended[1], 16)) sets.push_back("avx512f");
  if (avx512 && has(extended[1], 30)) sets.push_back("avx512bw");
  if (avx512 && has(extended[1], 31)) sets.push_back("avx512vl");
  if (avx512 && has(extended[2], 11)) sets.push_back("avx512vnni");
  return sets;
}
#endif

// Linux lends the tiles' registers to a process that asks for them.
bool amx_is_granted() {
#if defined(__linux__) && defined(__x86_64__)
  static const bool granted = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25, kSavesRegisters = 1u << 27;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTile) == 0 || (d & kInt8) == 0) {
      return false;
    }
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & kSavesRegisters) == 0) return false;
    unsigned low = 0, high = 0;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    constexpr unsigned kTileState = 3u << 17;
    if ((low & kTileState) != kTileState) return false;
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return granted;
#else
  return false;
#endif
}

// GCC 12 cannot be asked for it by name.
bool has_avxvnni() {
#ifdef SPLIP_AVXVNNI_KERNELS
  constexpr unsigned kAvxVnniBit = 1u << 4;
#ifdef _MSC_VER
  int registers[4] = {};
  __cpuidex(registers, 7, 1);
  return (static_cast<unsigned>(registers[0]) & kAvxVnniBit) != 0;
#else
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kAvxVnniBit) != 0;
#endif
#else
  return false;
#endif
}

bool can_run(const std::string& level) {
  const auto has = [sets = instruction_sets()](const char* name) {
    return std::find(sets.begin(), sets.end(), name) != sets.end();
  };
  const bool avx2 = has("avx2") && has("fma");
  if (level == "avx2") return avx2;
  if (level == "avxvnni") return avx2 && has_avxvnni();
  const bool avx512 = has("avx512f") && has("avx512bw") && has("avx512vl") && has("avx512vnni");
  if (level == "avx512" || level == "amx-emulated") return avx512;
  if (level == "avxvnni-emulated") return avx2 && avx512;
  if (level == "amx") return avx512 && amx_is_granted();
  if (level == "neon") return has("neon");
  if (level == "dotprod") return has("neon") && has("dotprod");
  if (level == "i8mm") return has("neon") && has("dotprod") && has("i8mm");
  return level == "scalar";
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> level{[] {
    const Kernels* best = nullptr;
    for (const Kernels& candidate : kLevels) {
      if (can_run(candidate.name)) best = &candidate;
    }
    return best;
  }()};
  return level;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> sets;
#if defined(_MSC_VER) && defined(_M_X64)
  sets = sets_of_windows();
#elif defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("sse4.2")) sets.push_back("sse4.2");
  if (__builtin_cpu_supports("avx2")) sets.push_back("avx2");
  if (__builtin_cpu_supports("fma")) sets.push_back("fma");
  if (__builtin_cpu_supports("avx512f")) sets.push_back("avx512f");
  if (__builtin_cpu_supports("avx512bw")) sets.push_back("avx512bw");
  if (__builtin_cpu_supports("avx512vl")) sets.push_back("avx512vl");
  if (__builtin_cpu_supports("avx512vnni")) sets.push_back("avx512vnni");
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 12
  if (__builtin_cpu_supports("avx512bf16")) sets.push_back("avx512bf16");
#endif
#if !defined(__clang__) && __GNUC__ >= 12
  if (__builtin_cpu_supports("amx-bf16")) sets.push_back("amx-bf16");
  if (__builtin_cpu_supports("amx-int8")) sets.push_back("amx-int8");
#endif
#elif defined(__aarch64__)
  sets.push_back("neon");
  for (const char* feature : {"dotprod", "i8mm"}) {
    if (arm_has(feature)) sets.push_back(feature);
  }
#endif
  return sets;
}

std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (const Kernels& level : kLevels) {
    if (can_run(level.name)) names.emplace_back(level.name);
  }
  return names;
}

std::string isa() { return current().name; }

void set_isa(const std::string& name) {
  for (const Kernels& level : kLevels) {
    if (name != level.name) continue;
    SPLIP_CHECK(can_run(name), "this processor cannot run the ", name, " kernels");
    chosen() = &level;
    return;
  }
  SPLIP_CHECK(false, "no ", name, " kernels");
}

const Kernels& current() { return *chosen(); }

}  // namespace splip::cpu
