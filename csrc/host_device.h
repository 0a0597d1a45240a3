// Marks of functions that the CUDA files share with host code and its tests.
#pragma once

#ifdef __CUDACC__
#define SPLIP_HOST_DEVICE __host__ __device__ __forceinline__
#define SPLIP_DEVICE __device__ __forceinline__  // a kernel's own logic, tested on the host
#else
#define SPLIP_HOST_DEVICE inline
#define SPLIP_DEVICE inline
#endif

#ifdef __CUDA_ARCH__
#define SPLIP_UNROLL _Pragma("unroll")
#else
#define SPLIP_UNROLL  // a host compiler would warn
#endif
