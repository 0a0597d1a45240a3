// Rows of prompt_layernorm for AVX-512.
#define SPLIP_LAYERNORM_KERNELS kLayerNormAvx512
#include "layernorm_rows.inc"
