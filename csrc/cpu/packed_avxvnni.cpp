// AVX-VNNI kernel of the packed gallery: the scan of packed_avx2.h with an instruction that
// multiplies four bytes and adds them in 32 bits. For processors that have it without AVX-512.
//
// SPLIP_EMULATE_AVXVNNI: the same instruction in the encoding of AVX-512 VNNI, to test this kernel
// on processors that have only that one. In assembler: compilers older than the instruction need
// no flag for it, and GCC 12 wraps its intrinsic in copies of the registers.
#include "packed_avx2.h"

namespace splip::cpu {
namespace {

#ifdef SPLIP_EMULATE_AVXVNNI
#define SPLIP_AVXVNNI_SCAN scan_avxvnni_emulated
#define SPLIP_ENCODING "%{evex%} "
#else
#define SPLIP_AVXVNNI_SCAN scan_avxvnni
#define SPLIP_ENCODING "%{vex%} "
#endif

struct MultiplyAdd {
  void operator()(__m256i& sum, __m256i one, __m256i v, __m256i two, __m256i w) const {
    asm(SPLIP_ENCODING "vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(one), "x"(v));
    asm(SPLIP_ENCODING "vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(two), "x"(w));
  }
};

}  // namespace

void SPLIP_AVXVNNI_SCAN(const Scan& a) { scan<MultiplyAdd>(a); }

}  // namespace splip::cpu
