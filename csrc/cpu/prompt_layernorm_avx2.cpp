// Rows of prompt_layernorm for AVX2.
#define SPLIP_LAYERNORM_KERNELS kLayerNormAvx2
#include "layernorm_rows.inc"
