// The AMX kernel with tiles in plain C++, on any processor with AVX-512: for tests.
#define SPLIP_EMULATE_AMX
#include "packed_amx.cpp"
