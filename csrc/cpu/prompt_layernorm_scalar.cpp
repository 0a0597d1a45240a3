// Rows of prompt_layernorm for the baseline.
#define SPLIP_LAYERNORM_KERNELS kLayerNormScalar
#include "layernorm_rows.inc"
