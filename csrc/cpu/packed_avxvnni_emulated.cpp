// The AVX-VNNI kernel on any processor with AVX-512 VNNI: for tests.
#define SPLIP_EMULATE_AVXVNNI
#include "packed_avxvnni.cpp"
