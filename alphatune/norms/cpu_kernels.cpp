// Norm layers on a CPU, one read for the moments and one for the output.
//
// Compiled and called by cpu_kernels.py, which has the mathematics' source. Plain C
// functions over pointers: no header of torch, so that compiling takes a second.
//
// Sums are shifted by the running mean and accumulated in float. Where an example lies so far from the running mean that the
// subtraction E[d^2] - E[d]^2 would lose digits, its variance is summed once more
// around its own mean: the values are still in the cache.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t BLOCK = 4096;         // values summed before they join the total: keeps the rounding of long rows small
constexpr int64_t CHANNELS = 64;        // most channels of a task over rows
constexpr int64_t CACHED = 2048;        // values of such a task, to stay in the first cache between two reads
constexpr int64_t SMALL = 16 * 1024;    // activations below this are not worth waking threads for
constexpr float FAR = 64.0f;            // squared deviations from which on the variance is summed anew

struct bfloat16 { uint16_t bits; };

inline float load(float v) { return v; }
inline float load(bfloat16 v) {
    uint32_t wide = uint32_t(v.bits) << 16;
    float out;
    std::memcpy(&out, &wide, 4);
    return out;
}
inline void store(float* to, float v) { *to = v; }
inline void store(bfloat16* to, float v) {  // to the nearest, ties to even; NaN stays NaN
    uint32_t wide;
    std::memcpy(&wide, &v, 4);
    uint32_t rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
    to->bits = v != v ? 0x7fc0 : uint16_t(rounded);
}

// exp to 2 ulp, in operations that vectorise: 2^k times a polynomial on [-ln2/2, ln2/2]
inline float exponential(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    float k = std::nearbyint(x * 1.44269504f);
    float r = std::fma(k, -0.693145752f, x);
    r = std::fma(k, -1.42860677e-6f, r);
    float p = 1.98412698e-4f;
    p = std::fma(p, r, 1.38888889e-3f);
    p = std::fma(p, r, 8.33333333e-3f);
    p = std::fma(p, r, 4.16666667e-2f);
    p = std::fma(p, r, 1.66666667e-1f);
    p = std::fma(p, r, 0.5f);
    p = std::fma(p, r, 1.0f);
    p = std::fma(p, r, 1.0f);
    int32_t power = (int32_t(k) + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, 4);
    return p * scale;
}

enum Act { NONE, RELU, SILU };

template <Act act>
inline float activate(float y) {
    if (act == RELU) return y < 0 ? 0.0f : y;  // NaN passes, as in torch
    if (act == SILU) return y / (1.0f + exponential(-y));
    return y;
}

struct Layer {
    const float *mean, *var, *weight, *bias, *alpha;  // weight and bias may be null
    int64_t alpha_stride;                             // 0: one alpha for all channels
    float eps;
};

// Paper Eq. 3: y = scale * (x - m) + shift, from the example's moments around m.
inline void mix(const Layer& layer, int64_t first, int64_t count, const float* own_mean, const float* own_var,
                float* scale, float* shift) {
    for (int64_t i = 0; i < count; ++i) {
        int64_t c = first + i;
        float a = layer.alpha[c * layer.alpha_stride], d = own_mean[i];
        float variance = (1 - a) * layer.var[c] + a * own_var[i] + a * (1 - a) * d * d;
        float s = (layer.weight ? layer.weight[c] : 1.0f) / std::sqrt(variance + layer.eps);
        scale[i] = s;
        shift[i] = (layer.bias ? layer.bias[c] : 0.0f) - a * d * s;
    }
}

// Means of d and d * d over a row, d = x - origin.
template <typename T>
inline void row_means(const T* row, int64_t positions, float share, float origin, float* mean, float* squares) {
    float sum = 0, sum_squares = 0;
    for (int64_t start = 0; start < positions; start += BLOCK) {
        const T* block = row + start;
        int64_t count = std::min(BLOCK, positions - start);
        float s = 0, q = 0;
#pragma omp simd reduction(+ : s, q)
        for (int64_t p = 0; p < count; ++p) {
            float d = load(block[p]) - origin;
            s += d;
            q += d * d;
        }
        sum += s;
        sum_squares += q;
    }
    *mean = sum * share;
    *squares = sum_squares * share;
}

// Mean of x - origin over a row, and its biased variance.
template <typename T>
inline void row_moments(const T* row, int64_t positions, float origin, float* mean, float* variance) {
    float share = 1.0f / positions, m, v;
    row_means(row, positions, share, origin, &m, &v);
    v -= m * m;
    *mean = m;
    if (m * m > FAR * v) {
        row_means(row, positions, share, origin + m, &m, &v);
        v -= m * m;  // m: what rounding left of the mean
    }
    *variance = std::max(v, 0.0f);
}

template <typename T, Act act>
void rows(const T* x, T* y, int64_t n, int64_t channels, int64_t positions, const Layer& layer, int threads) {
    int64_t width = std::max<int64_t>(1, std::min(CHANNELS, CACHED / positions));
    int64_t tasks = (channels + width - 1) / width;
#pragma omp parallel for schedule(static) num_threads(threads) if (n * channels * positions > SMALL)
    for (int64_t task = 0; task < n * tasks; ++task) {
        int64_t example = task / tasks, first = task % tasks * width;
        int64_t count = std::min(width, channels - first), offset = (example * channels + first) * positions;
        float mean[CHANNELS], var[CHANNELS], scale[CHANNELS], shift[CHANNELS];
        for (int64_t i = 0; i < count; ++i)
            row_moments(x + offset + i * positions, positions, layer.mean[first + i], mean + i, var + i);
        mix(layer, first, count, mean, var, scale, shift);
        for (int64_t i = 0; i < count; ++i) {
            const T* from = x + offset + i * positions;
            T* to = y + offset + i * positions;
            float origin = layer.mean[first + i], a = scale[i], b = shift[i];
#pragma omp simd
            for (int64_t p = 0; p < positions; ++p)
                store(to + p, activate<act>((load(from[p]) - origin) * a + b));
        }
    }
}

// Sums of d and d * d over the positions of a channels-last example, d = x - origin.
template <typename T>
inline void column_sums(const T* x, int64_t positions, int64_t channels, const float* origin, float* sum,
                        float* squares) {
    std::fill_n(sum, channels, 0.0f);
    std::fill_n(squares, channels, 0.0f);
    int64_t p = 0;
    for (; p + 4 <= positions; p += 4) {  // four at a time: the sums travel less
        const T *a = x + p * channels, *b = a + channels, *c = b + channels, *d = c + channels;
#pragma omp simd
        for (int64_t i = 0; i < channels; ++i) {
            float o = origin[i], e = load(a[i]) - o, f = load(b[i]) - o, g = load(c[i]) - o, h = load(d[i]) - o;
            sum[i] += (e + f) + (g + h);
            squares[i] += (e * e + f * f) + (g * g + h * h);
        }
    }
    for (; p < positions; ++p) {
        const T* a = x + p * channels;
#pragma omp simd
        for (int64_t i = 0; i < channels; ++i) {
            float d = load(a[i]) - origin[i];
            sum[i] += d;
            squares[i] += d * d;
        }
    }
}

// Mean of x - origin over the positions of a channels-last example, and the biased variance.
template <typename T>
inline void column_moments(const T* x, int64_t positions, int64_t channels, const float* origin, float* mean,
                           float* variance, float* own) {
    column_sums(x, positions, channels, origin, mean, variance);
    bool far = false;
    for (int64_t c = 0; c < channels; ++c) {
        mean[c] /= positions;
        variance[c] = std::max(variance[c] / positions - mean[c] * mean[c], 0.0f);
        far |= mean[c] * mean[c] > FAR * variance[c];
        own[c] = origin[c] + mean[c];
    }
    if (!far) return;
    std::vector<float> rest(channels);  // what rounding left of the mean
    column_sums(x, positions, channels, own, rest.data(), variance);
    for (int64_t c = 0; c < channels; ++c) {
        rest[c] /= positions;
        variance[c] = std::max(variance[c] / positions - rest[c] * rest[c], 0.0f);
    }
}

template <typename T, Act act>
void columns(const T* x, T* y, int64_t n, int64_t channels, int64_t positions, const Layer& layer, int threads) {
#pragma omp parallel num_threads(threads) if (n * channels * positions > SMALL)
    {
        std::vector<float> scratch(4 * channels);
        float *mean = scratch.data(), *var = mean + channels, *scale = var + channels, *shift = scale + channels;
#pragma omp for schedule(static)
        for (int64_t example = 0; example < n; ++example) {
            const T* from = x + example * positions * channels;
            T* to = y + example * positions * channels;
            column_moments(from, positions, channels, layer.mean, mean, var, scale);
            mix(layer, 0, channels, mean, var, scale, shift);
            for (int64_t c = 0; c < channels; ++c) shift[c] -= layer.mean[c] * scale[c];
            for (int64_t p = 0; p < positions; ++p) {
                const T* in = from + p * channels;
                T* out = to + p * channels;
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c)
                    store(out + c, activate<act>(load(in[c]) * scale[c] + shift[c]));
            }
        }
    }
}

template <typename T>
void example_weighted(const T* x, T* y, int64_t n, int64_t channels, int64_t positions, bool channels_last,
                      int act, const Layer& layer, int threads) {
    auto run = [&](auto in_rows, auto in_columns) {
        (channels_last ? in_columns : in_rows)(x, y, n, channels, positions, layer, threads);
    };
    if (act == RELU) run(rows<T, RELU>, columns<T, RELU>);
    else if (act == SILU) run(rows<T, SILU>, columns<T, SILU>);
    else run(rows<T, NONE>, columns<T, NONE>);
}

}  // namespace

extern "C" {

// x, y: (n, channels, positions), or channels-last (n, positions, channels). dtype 0: float, 1: bfloat16.
void example_weighted_norm(const void* x, void* y, int64_t n, int64_t channels, int64_t positions,
                           int channels_last, int dtype, int act, const float* mean, const float* var,
                           const float* weight, const float* bias, const float* alpha, int64_t alpha_stride,
                           float eps, int threads) {
    Layer layer{mean, var, weight, bias, alpha, alpha_stride, eps};
    if (dtype == 0)
        example_weighted((const float*)x, (float*)y, n, channels, positions, channels_last, act, layer, threads);
    else
        example_weighted((const bfloat16*)x, (bfloat16*)y, n, channels, positions, channels_last, act, layer, threads);
}

}  // extern "C"
