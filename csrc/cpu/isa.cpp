// What the processor can execute, and which kernels run.
#include "isa.h"

#include <algorithm>
#include <atomic>

#include "../common.h"
#include "../splip.h"

namespace splip::cpu {
namespace {

// From the slowest to the fastest.
constexpr Kernels kLevels[] = {
    {"scalar", scan_scalar, dot_scalar, quantise_scalar, nullptr, nullptr},
#ifdef SPLIP_X86_KERNELS
    {"avx2", scan_avx2, dot_scalar, quantise_scalar, nullptr, nullptr},
    {"avx512", scan_avx512, dot_avx512, quantise_avx512, layernorm_row_avx512,
     layernorm_row_avx512},
#endif
};

bool can_run(const std::string& level) {
  const auto has = [sets = instruction_sets()](const char* name) {
    return std::find(sets.begin(), sets.end(), name) != sets.end();
  };
  if (level == "avx2") return has("avx2") && has("fma");
  if (level == "avx512")
    return has("avx512f") && has("avx512bw") && has("avx512vl") && has("avx512vnni");
  return level == "scalar";
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> level{[] {
    const Kernels* best = &kLevels[0];
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
#if defined(__x86_64__) && defined(__GNUC__)
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
