#pragma once
// SIMD_CLONES compiles a function for AVX-512, AVX2 and plain x86-64; the loader picks the widest
// that the machine has. What it calls must be ALWAYS_INLINE to be compiled with it.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SIMD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SIMD_CLONES
#endif
#if defined(__GNUC__)
#define ALWAYS_INLINE inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE inline
#endif
