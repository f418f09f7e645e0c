// Norm layers on a CPU, one read for the moments and one for the output.
//
// Compiled and called by cpu.py, which has the mathematics' source. Plain C
// functions over pointers: no header of torch, so that compiling takes a second.
//
// Sums are shifted, by the running mean or by the mean of a few values, and accumulated in
// float, some thousand at a time. Where the data lie so far from there that the subtraction
// E[d^2] - E[d]^2 would lose digits, they are summed once more around their own mean: they are
// still in the cache. From that mean the output is computed, too: no offset costs digits.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

#if !defined(_OPENMP)
constexpr int64_t LANES = 1;            // floats that a row is summed in: without OpenMP compilers keep to its order
#elif defined(__AVX512F__)
constexpr int64_t LANES = 16;
#elif defined(__AVX__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif
constexpr int64_t BLOCK = 64 * LANES;   // values of a row summed before they join the total: keeps their rounding small
constexpr int64_t CHANNELS = 64;        // most channels of a task over rows
constexpr int64_t CACHED = 2048;        // values of such a task, to stay in the first cache between two reads
constexpr int64_t SMALL = 16 * 1024;    // activations below this are not worth waking threads for
constexpr int64_t COLUMN_BLOCK = 256;   // positions of a channels-last example summed before they join the total
constexpr float FAR = 16.0f;            // squared deviations from which on the variance is summed anew
constexpr int64_t FEW = 16;             // far channels, one in so many, that are summed alone and not all of them anew
constexpr float OFFSET = 4.0f;          // deviations from 0 from which on a centre is subtracted before scaling
constexpr int PASSES = 6;               // each brings the centre seven digits nearer; float has 77

#define NOT_INLINED __attribute__((noinline))

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

// An example's moments in some channels: its means are centre + rest, its variances biased.
struct Own {
    float* centre;
    double *rest, *variance;
};

// Paper Eq. 3: y = scale * (x - centre) + shift. Returns whether a variance is too large for float.
template <typename Root>
inline bool mix_in(const Layer& layer, int64_t first, int64_t count, const Own& own, float* scale, float* shift) {
    int overflow = 0;
    for (int64_t i = 0; i < count; ++i) {
        int64_t c = first + i;
        double a = layer.alpha[c * layer.alpha_stride], d = (double(own.centre[i]) - layer.mean[c]) + own.rest[i];
        double variance = (1 - a) * layer.var[c] + a * own.variance[i] + a * (1 - a) * d * d;
        Root s = (layer.weight ? layer.weight[c] : 1.0f) / std::sqrt(Root(variance + layer.eps));
        overflow |= variance > FLT_MAX;
        scale[i] = float(s);
        shift[i] = float((layer.bias ? layer.bias[c] : 0.0f) + ((1 - a) * d - own.rest[i]) * s);
    }
    return overflow;
}

inline void mix(const Layer& layer, int64_t first, int64_t count, const Own& own, float* scale, float* shift) {
    if (mix_in<float>(layer, first, count, own, scale, shift))  // in double all roots would take twice as long
        mix_in<double>(layer, first, count, own, scale, shift);
}

// From means of d and d * d around a centre: whether it is so far from the mean that the variance lost digits,
// and there is a nearer one.
inline bool is_far(float centre, double mean, double variance) {
    return mean * mean > FAR * variance && float(centre + mean) != centre;
}

// Moments in double: for values whose squares overflow in float or that are not finite, and for few that are far.
template <typename T>
NOT_INLINED void wide_moments(const T* x, int64_t positions, int64_t stride, float* centre, double* rest,
                              double* variance) {
    double sum = 0, squares = 0;
    for (int64_t p = 0; p < positions; ++p) sum += load(x[p * stride]);
    double mean = sum / positions;
    for (int64_t p = 0; p < positions; ++p) {
        double d = load(x[p * stride]) - mean;
        squares += d * d;
    }
    *centre = float(mean);
    *rest = mean - *centre;
    *variance = squares / positions;
}

// Means of d and d * d over a row, d = x - centre.
template <typename T>
inline void row_means(const T* row, int64_t positions, double share, float centre, double* mean, double* squares) {
    double sum = 0, sum_squares = 0;
    for (int64_t start = 0; start < positions; start += BLOCK) {
        const T* block = row + start;
        int64_t count = std::min(BLOCK, positions - start);
        float s = 0, q = 0;
#pragma omp simd reduction(+ : s, q)
        for (int64_t p = 0; p < count; ++p) {
            float d = load(block[p]) - centre;
            s += d;
            q += d * d;
        }
        sum += s;
        sum_squares += q;
    }
    *mean = sum * share;
    *squares = sum_squares * share;
}

// Moments of a row, first around the centre that is given.
template <typename T>
inline void row_moments(const T* row, int64_t positions, float* centre, double* rest, double* variance) {
    double share = 1.0 / positions, m, v;
    for (int pass = 0; pass < PASSES; ++pass) {
        row_means(row, positions, share, *centre, &m, &v);
        v -= m * m;
        if (!is_far(*centre, m, v)) break;
        *centre += float(m);
    }
    if (std::isfinite(v)) {
        *rest = m;
        *variance = std::max(v, 0.0);
    } else {
        wide_moments(row, positions, 1, centre, rest, variance);
    }
}

template <typename T, Act act>
void rows(const T* x, T* y, int64_t n, int64_t channels, int64_t positions, const Layer& layer, int threads) {
    int64_t width = std::max<int64_t>(1, std::min(CHANNELS, CACHED / positions));
    int64_t tasks = (channels + width - 1) / width;
#pragma omp parallel for schedule(static) num_threads(threads) if (n * channels * positions > SMALL)
    for (int64_t task = 0; task < n * tasks; ++task) {
        int64_t example = task / tasks, first = task % tasks * width;
        int64_t count = std::min(width, channels - first), offset = (example * channels + first) * positions;
        float centre[CHANNELS], scale[CHANNELS], shift[CHANNELS];
        double rest[CHANNELS], variance[CHANNELS];
        for (int64_t i = 0; i < count; ++i) {
            centre[i] = layer.mean[first + i];
            row_moments(x + offset + i * positions, positions, centre + i, rest + i, variance + i);
        }
        mix(layer, first, count, {centre, rest, variance}, scale, shift);
        for (int64_t i = 0; i < count; ++i) {
            const T* from = x + offset + i * positions;
            T* to = y + offset + i * positions;
            float origin = centre[i], a = scale[i], b = shift[i];
#pragma omp simd
            for (int64_t p = 0; p < positions; ++p)
                store(to + p, activate<act>((load(from[p]) - origin) * a + b));
        }
    }
}

// Sums of d and d * d over some positions of a channels-last example, d = x - centre.
template <typename T>
inline void column_sums(const T* x, int64_t positions, int64_t channels, const float* centre, float* sum,
                        float* squares) {
    std::fill_n(sum, channels, 0.0f);
    std::fill_n(squares, channels, 0.0f);
    int64_t p = 0;
    for (; p + 4 <= positions; p += 4) {  // four at a time: the sums travel less
        const T *a = x + p * channels, *b = a + channels, *c = b + channels, *d = c + channels;
#pragma omp simd
        for (int64_t i = 0; i < channels; ++i) {
            float o = centre[i], e = load(a[i]) - o, f = load(b[i]) - o, g = load(c[i]) - o, h = load(d[i]) - o;
            sum[i] += (e + f) + (g + h);
            squares[i] += (e * e + f * f) + (g * g + h * h);
        }
    }
    for (; p < positions; ++p) {
        const T* a = x + p * channels;
#pragma omp simd
        for (int64_t i = 0; i < channels; ++i) {
            float d = load(a[i]) - centre[i];
            sum[i] += d;
            squares[i] += d * d;
        }
    }
}

// Moments over the positions of a channels-last example, first around given centres. scratch: 2 * channels.
template <typename T>
inline void column_moments(const T* x, int64_t positions, int64_t channels, const Own& own, float* scratch) {
    float *sum = scratch, *squares = sum + channels;
    double share = 1.0 / positions;
    int64_t far = 0;
    for (int pass = 0; pass < PASSES; ++pass) {
        std::fill_n(own.rest, channels, 0.0);
        std::fill_n(own.variance, channels, 0.0);
        for (int64_t start = 0; start < positions; start += COLUMN_BLOCK) {
            int64_t count = std::min(COLUMN_BLOCK, positions - start);
            column_sums(x + start * channels, count, channels, own.centre, sum, squares);
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c) {
                own.rest[c] += sum[c];
                own.variance[c] += squares[c];
            }
        }
        far = 0;
        for (int64_t c = 0; c < channels; ++c) {
            own.rest[c] *= share;
            own.variance[c] = own.variance[c] * share - own.rest[c] * own.rest[c];
            far += is_far(own.centre[c], own.rest[c], own.variance[c]);
        }
        if (far * FEW <= channels) break;
        for (int64_t c = 0; c < channels; ++c)
            if (is_far(own.centre[c], own.rest[c], own.variance[c])) own.centre[c] += float(own.rest[c]);
    }
    for (int64_t c = 0; c < channels; ++c) {
        bool again = !std::isfinite(own.variance[c]) || (far && is_far(own.centre[c], own.rest[c], own.variance[c]));
        if (again) wide_moments(x + c, positions, channels, own.centre + c, own.rest + c, own.variance + c);
        else own.variance[c] = std::max(own.variance[c], 0.0);
    }
}

// Whether x * scale + rest would lose digits that (x - centre) * scale + shift does not.
inline bool is_offset(const Layer& layer, int64_t channels, const float* centre, const float* scale) {
    int offset = 0;
    for (int64_t c = 0; c < channels; ++c) {
        float gamma = layer.weight ? layer.weight[c] : 1.0f;
        offset |= std::abs(centre[c] * scale[c]) > OFFSET * std::abs(gamma);
    }
    return offset;
}

template <typename T, Act act>
void columns(const T* x, T* y, int64_t n, int64_t channels, int64_t positions, const Layer& layer, int threads) {
#pragma omp parallel num_threads(threads) if (n * channels * positions > SMALL)
    {
        std::vector<float> scratch(3 * channels);
        std::vector<double> moments(2 * channels);
        float *centre = scratch.data(), *scale = centre + channels, *shift = scale + channels;
        Own own{centre, moments.data(), moments.data() + channels};
#pragma omp for schedule(static)
        for (int64_t example = 0; example < n; ++example) {
            const T* from = x + example * positions * channels;
            T* to = y + example * positions * channels;
            auto write = [=](auto value) {
                for (int64_t p = 0; p < positions; ++p) {
                    const T* in = from + p * channels;
                    T* out = to + p * channels;
#pragma omp simd
                    for (int64_t c = 0; c < channels; ++c) store(out + c, activate<act>(value(load(in[c]), c)));
                }
            };
            std::copy_n(layer.mean, channels, centre);
            column_moments(from, positions, channels, own, scale);
            mix(layer, 0, channels, own, scale, shift);
            if (is_offset(layer, channels, centre, scale)) {
                write([=](float v, int64_t c) { return (v - centre[c]) * scale[c] + shift[c]; });
            } else {
                for (int64_t c = 0; c < channels; ++c) shift[c] -= centre[c] * scale[c];
                write([=](float v, int64_t c) { return v * scale[c] + shift[c]; });
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

// Grouped normalisation (grouped.py) of channels-last float activations. A group of
// examples is a matrix (rows, channels), cut into blocks that stay in the cache between two
// reads. Rows of few channels are taken together as one long line. What is summed with what
// depends on the shape alone, so the number of threads changes no bit.

constexpr int64_t LINE = 64;                 // values of rows taken together
constexpr int64_t BLOCK_LINES = 32;          // fewest lines of a block
constexpr int64_t BLOCK_VALUES = 16 * 1024;  // values of a block, with lines that are not too long

struct Grid {
    int64_t groups, rows, channels, num_groups;
    int64_t repeats, line, block, blocks;  // channels of a group, values of a line and of a block, blocks of a group

    Grid(int64_t groups, int64_t rows, int64_t channels, int64_t num_groups)
        : groups(groups), rows(rows), channels(channels), num_groups(num_groups), repeats(channels / num_groups) {
        int64_t together = 1;  // a power of two, for fold()
        while (2 * together * channels <= LINE && 2 * together <= rows) together *= 2;
        line = together * channels;
        block = std::max(BLOCK_LINES, BLOCK_VALUES / line) * line;
        blocks = (values() + block - 1) / block;
    }
    int64_t values() const { return rows * channels; }
    int64_t count(int64_t b) const { return std::min(block, values() - b * block); }
    int64_t at(int64_t g, int64_t b) const { return g * values() + b * block; }
};

// A line's sums -> its channels' sums, in the line's first values.
inline void fold(float* line, const Grid& grid) {
    for (int64_t half = grid.line / 2; half >= grid.channels; half /= 2)
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) line[i] += line[half + i];
}

// Values of a line's channels, in its first values -> repeated over the line.
inline void unfold(float* line, const Grid& grid) {
    for (int64_t done = grid.channels; done < grid.line; done *= 2) std::copy_n(line, done, line + done);
}

// Sums over a block, a channel at a time, of two terms of each value: term(index, place in the line, &first, &second).
template <typename Term>
inline void block_sums(int64_t count, const Grid& grid, float* __restrict first, float* __restrict second, Term term) {
    int64_t line = grid.line, start = 0;
    std::fill_n(first, line, 0.0f);
    std::fill_n(second, line, 0.0f);
    // Four at a time: the sums travel less. Long lines one after the other: memory wants to be read in order.
    for (; line <= LINE && start + 4 * line <= count; start += 4 * line) {
#pragma omp simd
        for (int64_t i = 0; i < line; ++i) {
            float a, b, c, d, e, f, g, h;
            term(start + i, i, a, e);
            term(start + line + i, i, b, f);
            term(start + 2 * line + i, i, c, g);
            term(start + 3 * line + i, i, d, h);
            first[i] += (a + b) + (c + d);
            second[i] += (e + f) + (g + h);
        }
    }
    for (; start < count; start += line) {
        int64_t rest = std::min(line, count - start);
#pragma omp simd
        for (int64_t i = 0; i < rest; ++i) {
            float a, e;
            term(start + i, i, a, e);
            first[i] += a;
            second[i] += e;
        }
    }
    fold(first, grid);
    fold(second, grid);
}

// Each value of a block: value(index, place in the line).
template <typename Value>
inline void block_values(float* __restrict out, int64_t count, int64_t line, Value value) {
    for (int64_t start = 0; start < count; start += line) {
        int64_t width = std::min(line, count - start);
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) out[start + i] = value(start + i, i);
    }
}

// Means of a block's channels and Σ (x − mean)², summed around the means of its first lines. Where these
// are far from the mean the block is summed once more, from the cache: no offset costs digits.
inline void block_moments(const float* x, int64_t count, const Grid& grid, double* mean, double* squares,
                          float* scratch) {
    float *origin = scratch, *first = origin + grid.line, *second = first + grid.line;
    float share = 1.0f / (count / grid.channels);
    auto sum_around_origin = [&] {
        unfold(origin, grid);
        block_sums(count, grid, first, second, [=](int64_t j, int64_t i, float& u, float& v) {
            u = x[j] - origin[i];
            v = u * u;
        });
        int far = 0;
        for (int64_t c = 0; c < grid.channels; ++c) {
            float d = first[c] * share, around_mean = std::max(second[c] - first[c] * d, 0.0f);
            mean[c] = double(origin[c]) + d;
            squares[c] = around_mean;
            far |= first[c] * d > FAR * around_mean;
        }
        return far;
    };
    int64_t few = std::min(count, 4 * grid.line);
    block_sums(few, grid, origin, second, [=](int64_t j, int64_t, float& u, float& v) { u = x[j], v = 0; });
    for (int64_t c = 0; c < grid.channels; ++c) origin[c] /= few / grid.channels;
    if (sum_around_origin()) {
        std::copy_n(mean, grid.channels, origin);
        sum_around_origin();
    }
}

// Of one group: two sums of each block's channels, and up to four factors of a line's values.
struct Area {
    std::vector<double> sums;
    std::vector<float> factors;

    explicit Area(const Grid& grid) : sums(2 * grid.blocks * grid.channels), factors(4 * grid.line) {}
};

// sum(g, b, area, scratch) over all blocks of a group, finish(g, area) once, write(g, b, area) over all blocks.
// Where there are enough groups a thread takes whole ones: they are still in its cache when they are read again.
// None of the three is to be inlined: two copies could round differently.
template <typename Sum, typename Finish, typename Write>
void each_group(const Grid& grid, int threads, Sum sum, Finish finish, Write write) {
    if (grid.groups * grid.values() <= SMALL) threads = 1;
    int64_t blocks = grid.blocks, whole = grid.groups - grid.groups % threads, rest = grid.groups - whole;
    std::vector<Area> shared(rest, Area(grid));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Area own(grid);
        std::vector<float> scratch(3 * grid.line);
#pragma omp for schedule(static) nowait
        for (int64_t g = 0; g < whole; ++g) {
            for (int64_t b = 0; b < blocks; ++b) sum(g, b, own, scratch.data());
            finish(g, own);
            for (int64_t b = 0; b < blocks; ++b) write(g, b, own);
        }
        if (rest > 0) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < rest * blocks; ++i)
                sum(whole + i / blocks, i % blocks, shared[i / blocks], scratch.data());
#pragma omp for schedule(static)
            for (int64_t i = 0; i < rest; ++i) finish(whole + i, shared[i]);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < rest * blocks; ++i) write(whole + i / blocks, i % blocks, shared[i / blocks]);
        }
    }
}

// y may be null: moments only.
void grouped_forward(const float* x, float* y, const Grid& grid, const float* weight, const float* bias, float eps,
                     float* mean, float* variance, int threads) {
    int64_t channels = grid.channels, line = grid.line, blocks = grid.blocks, repeats = grid.repeats;
    auto sum = [&](int64_t g, int64_t b, Area& area, float* scratch) NOT_INLINED {
        double* means = area.sums.data() + 2 * b * channels;
        block_moments(x + grid.at(g, b), grid.count(b), grid, means, means + channels, scratch);
    };
    auto finish = [&](int64_t g, Area& area) NOT_INLINED {
        std::vector<double> scratch(2 * channels);
        double *means = scratch.data(), *squares = means + channels, share = 1.0 / grid.rows;
        for (int64_t b = 0; b < blocks; ++b) {
            const double* part = area.sums.data() + 2 * b * channels;
            double weighs = share * (grid.count(b) / channels);
            for (int64_t c = 0; c < channels; ++c) means[c] += weighs * part[c];
        }
        for (int64_t b = 0; b < blocks; ++b) {
            const double *part = area.sums.data() + 2 * b * channels, *part_squares = part + channels;
            double weighs = share * (grid.count(b) / channels);
            for (int64_t c = 0; c < channels; ++c) {
                double d = part[c] - means[c];
                squares[c] += share * part_squares[c] + weighs * d * d;
            }
        }
        float *centre = area.factors.data(), *scale = centre + line, *shift = scale + line;
        for (int64_t k = 0; k < grid.num_groups; ++k) {
            const double *m = means + k * repeats, *s = squares + k * repeats;
            double pooled = 0, spread = 0;
            for (int64_t c = 0; c < repeats; ++c) pooled += m[c];
            pooled /= repeats;
            for (int64_t c = 0; c < repeats; ++c) spread += s[c] + (m[c] - pooled) * (m[c] - pooled);
            spread /= repeats;
            mean[g * grid.num_groups + k] = float(pooled);
            variance[g * grid.num_groups + k] = float(spread);
            // Squares that overflowed are said to be: 1 / sqrt(inf) would make a plausible y of them.
            float rstd = std::isinf(spread) ? NAN : float(1.0 / std::sqrt(spread + eps));
            for (int64_t c = k * repeats; c < (k + 1) * repeats; ++c) {
                centre[c] = float(pooled);
                scale[c] = weight ? weight[c] * rstd : rstd;
                shift[c] = bias ? bias[c] : 0.0f;
            }
        }
        for (float* factors : {centre, scale, shift}) unfold(factors, grid);
    };
    auto write = [&](int64_t g, int64_t b, const Area& area) NOT_INLINED {
        if (!y) return;
        const float *centre = area.factors.data(), *scale = centre + line, *shift = scale + line;
        const float* in = x + grid.at(g, b);
        block_values(y + grid.at(g, b), grid.count(b), line, [=](int64_t j, int64_t i) {
            return (in[j] - centre[i]) * scale[i] + shift[i];
        });
    };
    each_group(grid, threads, sum, finish, write);
}

// dx may be null. dweight and dbias (channels): sums over all groups of dy * (x - mean) * rstd, and of dy.
void grouped_backward(const float* x, const float* dy, float* dx, const Grid& grid, const float* weight, float eps,
                      const float* mean, const float* variance, float* dweight, float* dbias, int threads) {
    int64_t channels = grid.channels, line = grid.line, blocks = grid.blocks, repeats = grid.repeats;
    std::vector<double> group_sums(2 * grid.groups * channels);
    auto sum = [&](int64_t g, int64_t b, Area& area, float* scratch) NOT_INLINED {
        const float *in = x + grid.at(g, b), *din = dy + grid.at(g, b);
        float *centre = scratch, *first = centre + line, *second = first + line;
        for (int64_t c = 0; c < channels; ++c) centre[c] = mean[g * grid.num_groups + c / repeats];
        unfold(centre, grid);
        block_sums(grid.count(b), grid, first, second, [=](int64_t j, int64_t i, float& u, float& v) {
            u = din[j];
            v = u * (in[j] - centre[i]);
        });
        double* sums = area.sums.data() + 2 * b * channels;
        std::copy_n(first, channels, sums);
        std::copy_n(second, channels, sums + channels);
    };
    auto finish = [&](int64_t g, Area& area) NOT_INLINED {
        double* sums = group_sums.data() + 2 * g * channels;
        for (int64_t b = 0; b < blocks; ++b)
            for (int64_t i = 0; i < 2 * channels; ++i) sums[i] += area.sums[2 * b * channels + i];
        float *centre = area.factors.data(), *scale = centre + line, *p = scale + line, *q = p + line;
        for (int64_t k = 0; k < grid.num_groups; ++k) {
            double rstd = 1.0 / std::sqrt(double(variance[g * grid.num_groups + k]) + eps);
            double share = 1.0 / (grid.rows * repeats), mean_dy = 0, mean_dy_xhat = 0;
            for (int64_t c = k * repeats; c < (k + 1) * repeats; ++c) {
                double gamma = weight ? weight[c] : 1.0;
                sums[channels + c] *= rstd;
                mean_dy += gamma * share * sums[c];
                mean_dy_xhat += gamma * share * sums[channels + c];
                scale[c] = float(gamma * rstd);
            }
            for (int64_t c = k * repeats; c < (k + 1) * repeats; ++c) {
                centre[c] = mean[g * grid.num_groups + k];
                p[c] = float(-rstd * rstd * mean_dy_xhat);
                q[c] = float(-rstd * mean_dy);
            }
        }
        for (float* factors : {centre, scale, p, q}) unfold(factors, grid);
    };
    auto write = [&](int64_t g, int64_t b, const Area& area) NOT_INLINED {
        if (!dx) return;
        const float *centre = area.factors.data(), *scale = centre + line, *p = scale + line, *q = p + line;
        const float *in = x + grid.at(g, b), *din = dy + grid.at(g, b);
        block_values(dx + grid.at(g, b), grid.count(b), line, [=](int64_t j, int64_t i) {
            return din[j] * scale[i] + ((in[j] - centre[i]) * p[i] + q[i]);
        });
    };
    each_group(grid, threads, sum, finish, write);
    for (int64_t c = 0; c < channels; ++c) {
        double dy_total = 0, dy_xhat_total = 0;
        for (int64_t g = 0; g < grid.groups; ++g) {
            dy_total += group_sums[2 * g * channels + c];
            dy_xhat_total += group_sums[(2 * g + 1) * channels + c];
        }
        dbias[c] = float(dy_total);
        dweight[c] = float(dy_xhat_total);
    }
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

// x, y: (groups, rows, channels); mean, variance: (groups, num_groups), biased. y may be null.
void grouped_norm(const float* x, float* y, int64_t groups, int64_t rows, int64_t channels, int64_t num_groups,
                  const float* weight, const float* bias, float eps, float* mean, float* variance, int threads) {
    grouped_forward(x, y, Grid(groups, rows, channels, num_groups), weight, bias, eps, mean, variance, threads);
}

// Its gradient: dx like x, or null; dweight and dbias (channels).
void grouped_norm_backward(const float* x, const float* dy, float* dx, int64_t groups, int64_t rows, int64_t channels,
                           int64_t num_groups, const float* weight, float eps, const float* mean,
                           const float* variance, float* dweight, float* dbias, int threads) {
    grouped_backward(x, dy, dx, Grid(groups, rows, channels, num_groups), weight, eps, mean, variance, dweight,
                     dbias, threads);
}

}  // extern "C"
