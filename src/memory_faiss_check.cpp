// SPDX-License-Identifier: Apache-2.0
// Whether an index file that somebody else wrote can be trusted. FAISS's reader and its searches follow every number in
// a file, so it is read in a child process first, whose crash harms nobody.
#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexPQ.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/VectorTransform.h>
#include <faiss/index_io.h>
#include <faiss/invlists/InvertedLists.h>
#include <omp.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <memory>

#include "io/file.h"
#include "memory_index.h"

namespace reco {

namespace {

constexpr const char* kTag = "memory.adopt_index";
constexpr unsigned kMostSeconds = 3'600;

void expect(bool condition, const char* what) { check(condition, kTag, "the index is damaged: ", what); }

std::size_t size(std::int64_t count) { return static_cast<std::size_t>(count); }

void check_product_quantizer(const faiss::ProductQuantizer& pq, int dim) {
  const bool fits = pq.d == size(dim) && pq.M > 0 && pq.nbits > 0 && pq.nbits <= 24 && pq.dsub * pq.M == pq.d &&
                    pq.ksub == std::size_t{1} << pq.nbits && pq.centroids.size() == pq.d * pq.ksub &&
                    pq.code_size == (pq.nbits * pq.M + 7) / 8;
  expect(fits, "its product quantiser");
}

void check_scalar_quantizer(const faiss::ScalarQuantizer& sq, int dim) {
  using Quantizer = faiss::ScalarQuantizer;
  const bool uniform = sq.qtype == Quantizer::QT_8bit_uniform || sq.qtype == Quantizer::QT_4bit_uniform;
  const bool plain = sq.qtype == Quantizer::QT_fp16 || sq.qtype == Quantizer::QT_8bit_direct;
  Quantizer expected(size(dim), sq.qtype);
  const bool known = sq.qtype >= Quantizer::QT_8bit && sq.qtype <= Quantizer::QT_6bit;
  const bool fits = known && sq.d == size(dim) && sq.code_size == expected.code_size &&
                    (plain || sq.trained.size() == (uniform ? 2 : 2 * size(dim)));
  expect(fits, "its scalar quantiser");
}

void check_graph(const faiss::HNSW& graph, std::int64_t count) {
  const auto& sizes = graph.cum_nneighbor_per_level;
  const auto levels = static_cast<int>(sizes.size()) - 1;
  expect(levels >= 1 && sizes[0] == 0 && std::is_sorted(sizes.begin(), sizes.end()), "the sizes of its levels");
  expect(graph.levels.size() == size(count) && graph.offsets.size() == size(count) + 1, "its nodes");
  expect(graph.offsets.front() == 0 && graph.offsets.back() == graph.neighbors.size(), "its offsets");
  for (std::size_t i = 0; i < size(count); ++i) {
    expect(graph.levels[i] >= 1 && graph.levels[i] <= levels, "the level of a node");
    expect(graph.offsets[i] + size(sizes[size(graph.levels[i])]) == graph.offsets[i + 1], "the offset of a node");
  }
  for (const auto node : graph.neighbors) expect(node >= -1 && node < count, "a link");
  expect(count == 0 || (graph.entry_point >= 0 && graph.entry_point < count), "its entry point");
  expect(count == 0 || graph.max_level == graph.levels[size(graph.entry_point)] - 1, "the level of its entry point");
  // A link of a level must lead to a node that has the level.
  for (std::size_t i = 0; i < size(count); ++i) {
    for (int level = 1; level < graph.levels[i]; ++level) {
      for (int j = sizes[size(level)]; j < sizes[size(level) + 1]; ++j) {
        const auto node = graph.neighbors[graph.offsets[i] + size(j)];
        expect(node < 0 || graph.levels[size(node)] > level, "the level of a link");
      }
    }
  }
}

void check_codes(const faiss::IndexFlatCodes& index, std::size_t code_size) {
  expect(index.code_size == code_size && index.codes.size() == size(index.ntotal) * code_size, "its codes");
}

void check_index(const faiss::Index* index, int dim, std::int64_t rows);

void check_lists(const faiss::IndexIVF& index, std::int64_t rows) {
  expect(index.invlists != nullptr && index.nlist >= 1 && index.invlists->nlist == index.nlist, "its lists");
  expect(index.quantizer != nullptr && index.quantizer->ntotal == static_cast<std::int64_t>(index.nlist),
         "its coarse quantiser");
  expect(index.invlists->code_size == index.code_size, "the size of its codes");
  check_index(index.quantizer, index.d, index.quantizer->ntotal);
  std::size_t count = 0;
  for (std::size_t list = 0; list < index.nlist; ++list) {
    const std::size_t length = index.invlists->list_size(list);
    const faiss::InvertedLists::ScopedIds ids(index.invlists, list);
    for (std::size_t i = 0; i < length; ++i) expect(ids[i] >= 0 && ids[i] < rows, "a row number in a list");
    count += length;
  }
  expect(count == size(index.ntotal), "the number of its rows");
}

void check_transforms(const faiss::IndexPreTransform& index) {
  int dim = index.d;
  for (const faiss::VectorTransform* step : index.chain) {
    expect(step != nullptr && step->d_in == dim && step->d_out >= 1 && step->d_out <= 65'536, "a transformation");
    if (const auto* linear = dynamic_cast<const faiss::LinearTransform*>(step)) {
      const bool fits = linear->A.size() == size(linear->d_in) * size(linear->d_out) &&
                        (!linear->have_bias || linear->b.size() == size(linear->d_out));
      expect(fits, "the matrix of a transformation");
    } else if (dynamic_cast<const faiss::NormalizationTransform*>(step) == nullptr) {
      fail(kTag, "the index has a transformation of a kind that is not checked: linear ones and L2norm are");
    }
    dim = step->d_out;
  }
  expect(index.index != nullptr && index.index->d == dim, "the index behind its transformations");
}

/// `rows`: what its ids must stay below.
void check_index(const faiss::Index* index, int dim, std::int64_t rows) {
  expect(index != nullptr && index->d == dim && index->ntotal >= 0 && index->ntotal <= rows && index->is_trained,
         "its dimensions, rows, or training");
  if (const auto* map = dynamic_cast<const faiss::IndexIDMap*>(index)) {
    expect(map->id_map.size() == size(map->ntotal) && map->index != nullptr && map->index->ntotal == map->ntotal,
           "its row numbers");
    for (const auto id : map->id_map) expect(id >= 0 && id < rows, "a row number");
    return check_index(map->index, dim, map->ntotal);
  }
  if (const auto* transform = dynamic_cast<const faiss::IndexPreTransform*>(index)) {
    check_transforms(*transform);
    expect(transform->index->ntotal == transform->ntotal, "the number of its rows");
    return check_index(transform->index, transform->index->d, rows);
  }
  if (const auto* graph = dynamic_cast<const faiss::IndexHNSW*>(index)) {
    expect(graph->storage != nullptr && graph->storage->ntotal == graph->ntotal, "the rows of its graph");
    check_graph(graph->hnsw, graph->ntotal);
    return check_index(graph->storage, dim, graph->ntotal);
  }
  if (const auto* lists = dynamic_cast<const faiss::IndexIVF*>(index)) {
    if (const auto* codes = dynamic_cast<const faiss::IndexIVFPQ*>(lists)) {
      check_product_quantizer(codes->pq, dim);
      expect(codes->code_size == codes->pq.code_size, "the size of its codes");
    } else if (const auto* scalars = dynamic_cast<const faiss::IndexIVFScalarQuantizer*>(lists)) {
      check_scalar_quantizer(scalars->sq, dim);
      expect(scalars->code_size == scalars->sq.code_size, "the size of its codes");
    } else if (dynamic_cast<const faiss::IndexIVFFlat*>(lists) != nullptr) {
      expect(lists->code_size == size(dim) * sizeof(float), "the size of its codes");
    } else {
      fail(kTag, "the index has lists of a kind that is not checked: Flat, PQ and SQ are");
    }
    return check_lists(*lists, rows);
  }
  if (const auto* flat = dynamic_cast<const faiss::IndexFlat*>(index)) {
    return check_codes(*flat, size(dim) * sizeof(float));
  }
  if (const auto* codes = dynamic_cast<const faiss::IndexPQ*>(index)) {
    check_product_quantizer(codes->pq, dim);
    return check_codes(*codes, codes->pq.code_size);
  }
  if (const auto* scalars = dynamic_cast<const faiss::IndexScalarQuantizer*>(index)) {
    check_scalar_quantizer(scalars->sq, dim);
    return check_codes(*scalars, scalars->sq.code_size);
  }
  fail(kTag, "the index is of a kind that is not checked: Flat, PQ, SQ, IVF of these, HNSW over these are, behind",
       " linear transformations");
}

/// A file that claims to be huge must not make the child take all memory.
void limit_memory(const std::filesystem::path& path) {
  std::int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const auto bytes = static_cast<std::int64_t>(std::filesystem::file_size(path));
  const auto most = static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE) + 3 * bytes + (std::int64_t{1} << 30));
  const rlimit limit{most, most};
  setrlimit(RLIMIT_AS, &limit);
  const rlimit no_core{0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  alarm(kMostSeconds);
}

/// Runs in the child: what is wrong, or the number of rows.
std::string examine(const std::filesystem::path& path, std::int64_t dim, std::int64_t rows) {
  const InterruptScope to_the_end({});  // whoever is asked may wait for threads that a child does not have
  try {
    limit_memory(path);
    omp_set_num_threads(1);
    const std::unique_ptr<faiss::Index> index(faiss::read_index(path.c_str()));
    check(index->d == dim, kTag, "the index must be of dim ", dim, ", it is of ", index->d);
    check(index->ntotal >= 1 && index->ntotal <= rows, kTag, "the index must hold 1 to ", rows, " rows, it has ",
          index->ntotal);
    check_index(index.get(), index->d, index->ntotal);
    return std::to_string(index->ntotal);
  } catch (const Error& error) {
    return error.what();
  } catch (const std::bad_alloc&) {
    return std::string("[") + kTag + "] the file asks for more memory than it can need";
  } catch (const std::exception& error) {
    return std::string("[") + kTag + "] FAISS: " + error.what();
  }
}

std::string read_all(int descriptor) {
  std::string text;
  std::array<char, 4096> part;
  for (;;) {
    const auto count = ::read(descriptor, part.data(), part.size());
    if (count > 0) text.append(part.data(), static_cast<std::size_t>(count));
    if (count == 0 || (count < 0 && errno != EINTR)) return text;
  }
}

}  // namespace

std::int64_t check_faiss_file(const std::filesystem::path& path, const std::string& name, std::int64_t dim,
                              std::int64_t rows) {
  std::array<int, 2> ends{};
  check(::pipe(ends.data()) == 0, kTag, "cannot make a pipe");
  const pid_t child = ::fork();
  if (child == 0) {
    const std::string answer = examine(path, dim, rows);
    [[maybe_unused]] const auto written = ::write(ends[1], answer.data(), answer.size());
    ::_exit(0);
  }
  ::close(ends[1]);
  const std::string answer = read_all(ends[0]);
  ::close(ends[0]);
  check(child > 0, kTag, "cannot start a process");
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  const bool ended = WIFEXITED(status) && !answer.empty();
  check(ended, kTag, "'", name, "' is no index that can be trusted: FAISS crashed when it read it");
  if (answer[0] == '[') throw Error(answer + ", in '" + name + "'");
  return std::stoll(answer);
}

}  // namespace reco
