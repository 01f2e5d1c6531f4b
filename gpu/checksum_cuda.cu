// A warp hashes a piece: lane 8 q + a feeds accumulator a with every fourth stripe.
#include "gpu/checksum_cuda.h"
#include "gpu/cuda_ptx.cuh"
#include "gpu/segment_header.h"
#include "gpu/xxh3.h"

namespace kvdepot {
namespace {

constexpr int kWarps = 8;
// The word of a segment that holds its checksum counts as zero.
constexpr size_t kChecksumWord = offsetof(SegmentHeader, checksum) / 8;
constexpr size_t kNoWord = ~size_t{0};

__constant__ const xxh3::Secret kSecret = xxh3::DefaultSecret();

// What a lane contributes: products to its accumulator, words to the neighbour.
struct Contribution {
  uint64_t products = 0;
  uint64_t words = 0;

  __device__ void Add(uint64_t word, uint64_t secret_word) {
    products += xxh3::KeyedProduct(word, secret_word);
    words += word;
  }
};

// Adds the contributions of all lanes that feed this lane's accumulator.
__device__ uint64_t Gathered(Contribution own) {
  uint64_t sum = own.products + __shfl_xor_sync(kAllLanes, own.words, 1);
  sum += __shfl_xor_sync(kAllLanes, sum, 8);
  return sum + __shfl_xor_sync(kAllLanes, sum, 16);
}

// The secret as a warp wants it: as words, those at odd offsets too.
struct SecretWords {
  uint64_t stripe[sizeof(xxh3::Secret) / 8];  // of stripe i and accumulator a: [i + a]
  uint64_t last_stripe[xxh3::kAccumulators];

  // By all threads of a thread block, which then wait for each other.
  __device__ void Fill() {
    const int i = static_cast<int>(threadIdx.x);
    if (i < static_cast<int>(sizeof(xxh3::Secret) / 8))
      stripe[i] = xxh3::SecretWord(kSecret, 8 * i);
    if (i < xxh3::kAccumulators)
      last_stripe[i] = xxh3::SecretWord(kSecret, xxh3::kSecretLastStripe + 8 * i);
    __syncthreads();
  }
};

// A lane's accumulator, the same in all lanes 8 q + a with the same a.
struct Accumulator {
  int index;
  uint64_t scramble_secret;
  uint64_t value;

  __device__ explicit Accumulator(const SecretWords& secret)
      : index(static_cast<int>(threadIdx.x) % xxh3::kAccumulators),
        scramble_secret(secret.stripe[16 + index]),
        value(xxh3::InitialAccumulator(index)) {}

  __device__ void Scramble() { value = xxh3::Scrambled(value, scramble_secret); }

  // The hash of an input of `size_bytes`, in every lane.
  __device__ uint64_t Merged(size_t size_bytes) const {
    const uint64_t neighbour = __shfl_xor_sync(kAllLanes, value, 1);
    const int pair = index / 2;
    uint64_t merged = index % 2 == 0 ? xxh3::MergedPair(value, neighbour, kSecret, pair)
                                     : xxh3::MergedPair(neighbour, value, kSecret, pair);
    merged += __shfl_xor_sync(kAllLanes, merged, 2);
    merged += __shfl_xor_sync(kAllLanes, merged, 4);
    return xxh3::Avalanche(size_bytes * xxh3::kPrime64A + merged);
  }
};

// XXH3-64 of a whole piece, with word `zero_word` taken as 0. All of it is loaded at once.
__device__ uint64_t HashWholePiece(const uint64_t* words, size_t zero_word,
                                   const SecretWords& secret) {
  constexpr int kPieceBlocks = kChecksumPieceBytes / (64 * xxh3::kStripesPerBlock);
  constexpr int kLoads = xxh3::kStripesPerBlock / 4;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int first_stripe = lane / xxh3::kAccumulators;
  Accumulator accumulator(secret);
  uint64_t word[kPieceBlocks][kLoads];
#pragma unroll
  for (int block = 0; block < kPieceBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i)
      word[block][i] = words[8 * (xxh3::kStripesPerBlock * block + 4 * i) + lane];
  }
  if (static_cast<size_t>(lane) == zero_word) word[0][0] = 0;
#pragma unroll
  for (int block = 0; block < kPieceBlocks; ++block) {
    Contribution own;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int stripe = 4 * i + first_stripe;
      const bool is_last = block == kPieceBlocks - 1 && stripe == xxh3::kStripesPerBlock - 1;
      own.Add(word[block][i], is_last ? secret.last_stripe[accumulator.index]
                                      : secret.stripe[stripe + accumulator.index]);
    }
    accumulator.value += Gathered(own);
    if (block < kPieceBlocks - 1) accumulator.Scramble();
  }
  return accumulator.Merged(kChecksumPieceBytes);
}

// XXH3-64 of `count` words, with word `zero_word`, which is in the first block, taken as 0 unless
// the input is short (no segment is); the same result in every lane.
__device__ uint64_t HashWords(const uint64_t* words, size_t count, size_t zero_word,
                              const SecretWords& secret) {
  if (8 * count <= xxh3::kShortBytesMax)
    return xxh3::ShortHash(words, static_cast<int>(count), kSecret);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int first_stripe = lane / xxh3::kAccumulators;
  const auto load = [&](size_t i) { return i == zero_word ? 0 : words[i]; };
  const xxh3::LongInput input = xxh3::DivideLongInput(8 * count);
  Accumulator accumulator(secret);
  size_t at = static_cast<size_t>(lane);
  for (size_t block = 0; block < input.blocks; ++block) {
    Contribution own;
#pragma unroll
    for (int stripe = 0; stripe < xxh3::kStripesPerBlock; stripe += 4) {
      own.Add(load(at + 8 * static_cast<size_t>(stripe)),
              secret.stripe[first_stripe + stripe + accumulator.index]);
    }
    accumulator.value += Gathered(own);
    accumulator.Scramble();
    at += 8 * xxh3::kStripesPerBlock;
  }
  Contribution own;
  for (int stripe = first_stripe; stripe < input.rest_stripes; stripe += 4) {
    own.Add(load(at), secret.stripe[stripe + accumulator.index]);
    at += 32;
  }
  if (first_stripe == 0) {
    own.Add(load(count - 8 + static_cast<size_t>(accumulator.index)),
            secret.last_stripe[accumulator.index]);
  }
  accumulator.value += Gathered(own);
  return accumulator.Merged(8 * count);
}

__device__ size_t PieceCount(size_t size_bytes) {
  return (size_bytes + kChecksumPieceBytes - 1) / kChecksumPieceBytes;
}

// hashes[job][piece], `pieces_max` a job.
__global__ void __launch_bounds__(32 * kWarps)
    HashPieces(const SegmentJob* jobs, size_t pieces_max, uint64_t* hashes) {
  __shared__ SecretWords secret;
  secret.Fill();
  const SegmentJob& job = jobs[blockIdx.y];
  const size_t piece = static_cast<size_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (piece >= PieceCount(job.size_bytes) || piece >= pieces_max) return;
  const size_t begin = piece * kChecksumPieceBytes;
  const size_t bytes =
      job.size_bytes - begin < kChecksumPieceBytes ? job.size_bytes - begin : kChecksumPieceBytes;
  const uint64_t* words = reinterpret_cast<const uint64_t*>(job.segment + begin);
  const size_t zero_word = piece == 0 ? kChecksumWord : kNoWord;
  const uint64_t hash = bytes == kChecksumPieceBytes
                            ? HashWholePiece(words, zero_word, secret)
                            : HashWords(words, bytes / 8, zero_word, secret);
  if (threadIdx.x % 32 == 0) hashes[blockIdx.y * pieces_max + piece] = hash;
}

// One warp a job. The checksum goes to `checksums`, or to the header where that is null.
__global__ void __launch_bounds__(32 * kWarps)
    HashHashes(const SegmentJob* jobs, uint32_t job_count, size_t pieces_max,
               const uint64_t* hashes, uint64_t* checksums) {
  __shared__ SecretWords secret;
  secret.Fill();
  const uint32_t index = blockIdx.x * kWarps + threadIdx.x / 32;
  if (index >= job_count) return;
  const SegmentJob& job = jobs[index];
  const uint64_t checksum =
      HashWords(hashes + index * pieces_max, PieceCount(job.size_bytes), kNoWord, secret);
  if (threadIdx.x % 32 != 0) return;
  uint64_t* target = checksums != nullptr
                         ? checksums + index
                         : reinterpret_cast<uint64_t*>(job.segment) + kChecksumWord;
  *target = checksum;
}

size_t PiecesMax(size_t size_bytes_max) {
  return (size_bytes_max + kChecksumPieceBytes - 1) / kChecksumPieceBytes;
}

cudaError_t Queue(const SegmentJob* jobs, int job_count, size_t size_bytes_max, uint64_t* checksums,
                  std::byte* workspace, cudaStream_t stream) {
  if (job_count == 0) return cudaSuccess;
  const size_t pieces_max = PiecesMax(size_bytes_max);
  uint64_t* hashes = reinterpret_cast<uint64_t*>(workspace);
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(32 * kWarps);
  config.stream = stream;
  config.gridDim = dim3(static_cast<unsigned>((pieces_max + kWarps - 1) / kWarps),
                        static_cast<unsigned>(job_count));
  if (const cudaError_t error = cudaLaunchKernelEx(&config, HashPieces, jobs, pieces_max, hashes);
      error != cudaSuccess) {
    return error;
  }
  config.gridDim = dim3(static_cast<unsigned>((job_count + kWarps - 1) / kWarps));
  return cudaLaunchKernelEx(&config, HashHashes, jobs, static_cast<uint32_t>(job_count), pieces_max,
                            static_cast<const uint64_t*>(hashes), checksums);
}

}  // namespace

size_t ChecksumWorkspaceBytes(int job_count, size_t size_bytes_max) {
  return static_cast<size_t>(job_count) * PiecesMax(size_bytes_max) * sizeof(uint64_t);
}

cudaError_t ComputeChecksums(const SegmentJob* jobs, int job_count, size_t size_bytes_max,
                             uint64_t* checksums, std::byte* workspace, cudaStream_t stream) {
  return Queue(jobs, job_count, size_bytes_max, checksums, workspace, stream);
}

cudaError_t WriteChecksums(const SegmentJob* jobs, int job_count, size_t size_bytes_max,
                           std::byte* workspace, cudaStream_t stream) {
  return Queue(jobs, job_count, size_bytes_max, nullptr, workspace, stream);
}

}  // namespace kvdepot
