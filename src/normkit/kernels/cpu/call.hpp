// What a call to a kernel is made of: plain pointers, sizes and codes. No Python, no torch.

#pragma once

#include <cstdint>

// What is done to one vector must dissolve in the loop around it, which the compiler doubts for large bodies.
#define NORMKIT_INLINE [[gnu::always_inline]] inline

namespace normkit {

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

// The codes are those of kernels/cpu/__init__.py.
enum class DType : int { f32, f64, bf16, f16 };
enum class Activation : int { none, relu, leaky_relu, silu, gelu, elu, sigmoid, tanh, relu6, hardswish };

// A parameter or its gradient, in a dtype of its own; absent where data is null.
struct Parameter {
    void* data;
    DType dtype;
};

// A call computes the sums of its pass (moments, gradient sums), its outputs from given sums, or both in turn. Outputs
// alone may be those of evaluation, unless x is kept for a backward pass.
enum Stages { kSums = 1, kOutputs = 2, kKept = 4 };

// One call of the channel or the group family on x of N samples, C channels and S positions in space.
// Pointers that a primitive does not use are null. Tensors have the dtype and the layout of x.
struct Call {
    int64_t N, C, S;
    int64_t G;            // statistics of the call: C, or fewer where neighbouring channels of a sample share one
    int64_t together = 1;  // of the group family: neighbouring samples that share statistics, at the end maybe fewer
    int64_t stats_stride;  // between the rows of stats, and of tail
    DType dtype;
    int64_t of_samples;    // samples of the tensor that the call is a part of
    int stages;
    bool channels_last;  // memory is (N, S, C) instead of (N, C, S)
    bool affine_per_sample;  // of the group family: weight and bias are (N, C)
    Activation activation;
    bool constant_statistics;  // the statistics do not depend on x: evaluation
    bool uncentred;            // the mean is taken to be 0, the variance is the mean square
    double eps;

    const void* x;
    const void* residual;  // added before the activation
    const uint8_t* mask;   // (N, S); zero where a position is padding
    const void* dy;
    Parameter weight, bias;  // (C)

    // Statistics that are given, (G); mean + tail is the mean beyond the bits of f64.
    Parameter mean, var;
    const double* tail;

    // Known statistics (C). Of a blend the moments are the way there, share of 1, that normalizes; share is 1 without.
    // Of batch renorm, where corrected is not null, they and the moments lead to weight and bias, and back from these.
    Parameter known_mean, known_var;
    double share = 1;
    double r_max, d_max;
    double* corrected;  // (4, C): r, d, weight r, bias + weight d

    void *y, *dx, *dresidual;
    double* stats;             // (3, G): mean, biased variance, tail of the mean
    double* gradient_sums;     // (2, C): Σ dz, Σ dz * xhat; an output of the stage sums, if not null
    int64_t sums_stride;       // between the rows of gradient_sums, and of slopes
    const double* slopes;      // (2, C), of the stage outputs alone: dx = scale dz + slopes[0] xhat + slopes[1]; null: 0
    Parameter dweight, dbias;  // (C)
};

// One call of the row family on R rows of M elements: layer norm, or RMS norm without centring.
struct RowsCall {
    int64_t R, M;
    DType dtype;
    bool centred;
    double eps;
    const void *x, *dy;
    Parameter weight, bias;  // (M)
    double* stats;           // f64: mean, var, tail, one row of R each; RMS: 0, the mean square, 0
    void *y, *dx;
    Parameter dweight, dbias;  // (M)
};

// Switch norm, batch-instance norm.
enum class Mixture : int { switched, interpolated };

// One call of a norm by statistics that are mixed of those of each sample's channels, of whole samples and of the batch.
struct MixtureCall {
    Call call;  // of the group family, with statistics for each channel of each sample, in stats
    Mixture kind;
    Parameter share[2], dshare[2];  // switch norm: logits of means and of variances, (3); batch-instance norm: gates, (C)
    bool known;                     // the batch's moments are given, forward as those that the call knows
    double* batch;                  // (2, C): the batch's moments
    double* mixed;                  // (3, N, C): what normalizes: mean, variance, tail
};

// Running statistics of C channels, moved towards those of batches that follow one another.
struct RunningCall {
    int64_t C, sets;        // sets: how many batches
    const int64_t* counts;  // (sets): elements per channel; fewer than two move nothing
    double momentum;
    bool cumulative;        // the factor is 1 / batches instead of the momentum
    int64_t* batches;       // counts the batches first, if not null
    int64_t* skipped;       // if not null: counts batches that are not finite, which then move nothing
    const double* stats;    // (2, sets, C): mean, biased variance
    Parameter mean, var;    // (C), the variance unbiased
};

// The kernels of one instruction set.
struct Kernels {
    const char* name;
    int64_t (*channels_forward)(const Call&);  // -> elements per channel that count
    void (*channels_backward)(const Call&);
    void (*groups_forward)(const Call&);
    void (*groups_backward)(const Call&);
    void (*rows_forward)(const RowsCall&);
    void (*rows_backward)(const RowsCall&);
    int64_t (*mixture_forward)(const MixtureCall&);  // -> elements per channel of the batch that count
    void (*mixture_backward)(const MixtureCall&);
    void (*update_running)(const RunningCall&);
};

}  // namespace normkit
