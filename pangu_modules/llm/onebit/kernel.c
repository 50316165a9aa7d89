/* Products with weights of one bit, +1 or -1 times a scale per row, straight from the bits; see kernel.py.
 *
 * packed: (rows, columns / 8); bit j % 8 of byte j / 8 is column j, 1 for plus. columns is a multiple of 8.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Rows are shared among threads only where that saves more than waking them costs: from about 80 microseconds on. On a
 * machine with more threads than cores the wait for the last one costs milliseconds. */
#define WORTH_THREADS(weights) ((weights) >= (1 << 22))

#ifdef __AVX512F__
#include <immintrin.h>

/* The bits are the mask of an addition, 16 columns at a time. The sum over the columns whose bit is set and the sum
 * over all give the product: 2 * set - all. */
INLINE int64_t workspace(int64_t columns) { return 1; }

INLINE void prepare(const float *x, int64_t columns, float *total) {
  __m512 even = _mm512_setzero_ps(), odd = even;
  int64_t j = 0;
  for (; j + 32 <= columns; j += 32) {
    even = _mm512_add_ps(even, _mm512_loadu_ps(x + j));
    odd = _mm512_add_ps(odd, _mm512_loadu_ps(x + j + 16));
  }
  for (; j < columns; j += 8) even = _mm512_add_ps(even, _mm512_maskz_loadu_ps(0xff, x + j));
  *total = _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
}

INLINE void products(const uint8_t *packed, int64_t columns, const float *x, const float *total, int count, float *y) {
  const int64_t stride = columns / 8;
  __m512 even[4], odd[4];
  for (int k = 0; k < count; k++) even[k] = odd[k] = _mm512_setzero_ps();
  int64_t j = 0;
  for (; j + 64 <= columns; j += 64) {
    const __m512 x0 = _mm512_loadu_ps(x + j), x1 = _mm512_loadu_ps(x + j + 16);
    const __m512 x2 = _mm512_loadu_ps(x + j + 32), x3 = _mm512_loadu_ps(x + j + 48);
    for (int k = 0; k < count; k++) {
      uint64_t bits;
      memcpy(&bits, packed + k * stride + j / 8, 8);
      if (j % 512 == 0) __builtin_prefetch(packed + (k + count) * stride + j / 8); /* the rows after these */
      even[k] = _mm512_mask_add_ps(even[k], (__mmask16)bits, even[k], x0);
      odd[k] = _mm512_mask_add_ps(odd[k], (__mmask16)(bits >> 16), odd[k], x1);
      even[k] = _mm512_mask_add_ps(even[k], (__mmask16)(bits >> 32), even[k], x2);
      odd[k] = _mm512_mask_add_ps(odd[k], (__mmask16)(bits >> 48), odd[k], x3);
    }
  }
  for (; j < columns; j += 8) {
    const __m512 rest = _mm512_maskz_loadu_ps(0xff, x + j);
    for (int k = 0; k < count; k++)
      even[k] = _mm512_mask_add_ps(even[k], packed[k * stride + j / 8], even[k], rest);
  }
  for (int k = 0; k < count; k++) y[k] = 2 * _mm512_reduce_add_ps(_mm512_add_ps(even[k], odd[k])) - *total;
}

#else

/* For each byte of a row, the signed sum of 8 columns is looked up in a table of all 256. */
INLINE int64_t workspace(int64_t columns) { return columns / 8 * 256; }

INLINE void prepare(const float *x, int64_t columns, float *table) {
  for (int64_t group = 0; group < columns / 8; group++, x += 8, table += 256) {
    table[0] = 0;
    for (int k = 0; k < 8; k++) table[0] -= x[k];
    for (int k = 0; k < 8; k++)
      for (int i = 0; i < 1 << k; i++) table[(1 << k) + i] = table[i] + 2 * x[k];
  }
}

INLINE void products(const uint8_t *packed, int64_t columns, const float *x, const float *table, int count, float *y) {
  const int64_t stride = columns / 8;
  for (int k = 0; k < count; k++, packed += stride) {
    float sums[4] = {0, 0, 0, 0};
    int64_t j = 0;
    for (; j + 4 <= stride; j += 4)
      for (int i = 0; i < 4; i++) sums[i] += table[256 * (j + i) + packed[j + i]];
    for (; j < stride; j++) sums[0] += table[256 * j + packed[j]];
    y[k] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
}

#endif

INLINE void scaled(const uint8_t *packed, const float *scale, const float *bias, const float *x, const float *prepared,
                   float *y, int64_t columns, int64_t row, int count) {
  products(packed + row * (columns / 8), columns, x, prepared, count, y + row);
  for (int k = 0; k < count; k++) y[row + k] = y[row + k] * scale[row + k] + (bias ? bias[row + k] : 0);
}

/* y[t, r] = scale[r] * sum_j sign[r, j] * x[t, j] + bias[r]; bias may be NULL. Returns 0, or 1 without memory. */
int packed_linear(const uint8_t *packed, const float *scale, const float *bias, const float *x, float *y, int64_t rows,
                  int64_t columns, int64_t tokens, int threads) {
  const int64_t size = workspace(columns), blocks = (rows + 3) / 4;
  float *prepared = malloc(tokens * size * sizeof(float));
  if (prepared == NULL) return 1;
  for (int64_t t = 0; t < tokens; t++) prepare(x + t * columns, columns, prepared + t * size);
#pragma omp parallel for num_threads(threads) if (threads > 1 && WORTH_THREADS(rows * columns * tokens))
  for (int64_t block = 0; block < blocks; block++) {
    for (int64_t t = 0; t < tokens; t++) {
      const float *token = x + t * columns, *sums = prepared + t * size;
      int64_t row = 4 * block;
      if (row + 4 <= rows)
        scaled(packed, scale, bias, token, sums, y + t * rows, columns, row, 4);
      else
        for (; row < rows; row++) scaled(packed, scale, bias, token, sums, y + t * rows, columns, row, 1);
    }
  }
  free(prepared);
  return 0;
}

/* weight[r, j] = +scale[r] or -scale[r], for j < in_features <= columns. */
void unpack(const uint8_t *packed, const float *scale, float *weight, int64_t rows, int64_t columns,
            int64_t in_features, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && WORTH_THREADS(rows * columns))
  for (int64_t row = 0; row < rows; row++) {
    const uint8_t *bytes = packed + row * (columns / 8);
    const float values[2] = {-scale[row], scale[row]};
    float *out = weight + row * in_features;
    int64_t j = 0;
    for (; j + 8 <= in_features; j += 8)
      for (int k = 0; k < 8; k++) out[j + k] = values[bytes[j / 8] >> k & 1];
    for (; j < in_features; j++) out[j] = values[bytes[j / 8] >> (j % 8) & 1];
  }
}
