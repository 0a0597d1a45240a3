// What the processor can execute, and what the kernels were compiled to use.
#include "../splip.h"

namespace splip::cpu {

std::vector<std::string> instruction_sets() {
  std::vector<std::string> sets;
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("sse4.2")) sets.push_back("sse4.2");
  if (__builtin_cpu_supports("avx2")) sets.push_back("avx2");
  if (__builtin_cpu_supports("fma")) sets.push_back("fma");
  if (__builtin_cpu_supports("avx512f")) sets.push_back("avx512f");
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

std::string isa() { return "scalar"; }

}  // namespace splip::cpu
