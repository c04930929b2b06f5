#pragma once

// Compiles a function for several vector units and takes the widest when the program is loaded.
// Sanitizers start too late for that.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CONVPASS_WIDEST_VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CONVPASS_WIDEST_VECTORS
#endif
