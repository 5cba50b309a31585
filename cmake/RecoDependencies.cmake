# SPDX-License-Identifier: Apache-2.0
# Finds what reco is made of. The order matters: OpenMP before FAISS, whose package needs it; LibTorch is linked before
# FAISS, so that its MKL serves FAISS's BLAS calls.

# Shared unless it is said otherwise: then its FAISS is nobody else's. A project that adds reco keeps its own default.
if(DEFINED BUILD_SHARED_LIBS AND NOT BUILD_SHARED_LIBS)
  set(RECO_LIBRARY_TYPE STATIC)
else()
  set(RECO_LIBRARY_TYPE SHARED)
endif()

find_package(Python COMPONENTS Interpreter REQUIRED)

# LibTorch comes from the torch of the active Python. Its own CMake package is not used: with a CUDA build of torch, which is
# what PyPI serves, it stops where no CUDA toolkit is installed, though its headers and two libraries are all we need.
if(NOT TORCH_INSTALL_PREFIX)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
            "import importlib.util; print(importlib.util.find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE TORCH_INSTALL_PREFIX OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
find_library(RECO_TORCH_CPU torch_cpu PATHS ${TORCH_INSTALL_PREFIX}/lib NO_DEFAULT_PATH)
find_library(RECO_TORCH_C10 c10 PATHS ${TORCH_INSTALL_PREFIX}/lib NO_DEFAULT_PATH)
if(NOT RECO_TORCH_CPU OR NOT RECO_TORCH_C10)
  message(FATAL_ERROR "${Python_EXECUTABLE} has no torch: pip install torch==2.13.0, or set TORCH_INSTALL_PREFIX")
endif()
set(TORCH_LIBRARIES ${RECO_TORCH_CPU} ${RECO_TORCH_C10})
set(TORCH_INCLUDE_DIRS ${TORCH_INSTALL_PREFIX}/include ${TORCH_INSTALL_PREFIX}/include/torch/csrc/api/include)

find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(Eigen3 3.4 REQUIRED NO_MODULE)
find_package(JPEG REQUIRED)
find_package(PNG REQUIRED)
find_package(ZLIB REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(WebP REQUIRED IMPORTED_TARGET libwebp)
pkg_check_modules(SentencePiece REQUIRED IMPORTED_TARGET sentencepiece)
find_package(ICU REQUIRED COMPONENTS uc)
find_package(SQLite3 REQUIRED)
find_package(nlohmann_json 3.10 REQUIRED)

if(RECO_FETCH_FAISS)
  include(FetchContent)
  set(FAISS_ENABLE_GPU OFF CACHE BOOL "" FORCE)
  set(FAISS_ENABLE_PYTHON OFF CACHE BOOL "" FORCE)
  set(FAISS_ENABLE_EXTRAS OFF CACHE BOOL "" FORCE)
  set(reco_shared ${BUILD_SHARED_LIBS})
  set(BUILD_SHARED_LIBS OFF)
  set(BUILD_TESTING OFF)
  execute_process(COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/simd_level.py
                  OUTPUT_VARIABLE reco_simd OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  set(FAISS_OPT_LEVEL ${reco_simd} CACHE STRING "" FORCE)
  FetchContent_Declare(faiss
    GIT_REPOSITORY https://github.com/facebookresearch/faiss.git
    GIT_TAG 0ca9df4792b173d573044ee14ca0704780176e82)  # v1.14.3
  FetchContent_MakeAvailable(faiss)
  set(BUILD_SHARED_LIBS ${reco_shared})
  # FAISS builds one library a SIMD level and leaves the choice to the user.
  if(reco_simd STREQUAL "generic")
    set(reco_faiss faiss)
  else()
    set(reco_faiss faiss_${reco_simd})
  endif()
else()
  find_package(faiss REQUIRED)
  set(reco_faiss faiss)
endif()

add_library(reco_headers INTERFACE)
target_include_directories(reco_headers INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>)
target_link_libraries(reco_headers INTERFACE Eigen3::Eigen)
target_compile_features(reco_headers INTERFACE cxx_std_20)

add_library(reco_warnings INTERFACE)
target_compile_options(reco_warnings INTERFACE -Wall -Wextra)

add_library(reco_torch_dependencies INTERFACE)
target_include_directories(reco_torch_dependencies SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
target_link_libraries(reco_torch_dependencies INTERFACE ${TORCH_LIBRARIES})
# A CUDA build's libraries find the CUDA ones that they need by their own search paths, at run time.
target_link_options(reco_torch_dependencies INTERFACE LINKER:--allow-shlib-undefined)

add_library(reco_core_dependencies INTERFACE)
target_include_directories(reco_core_dependencies INTERFACE ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(reco_core_dependencies INTERFACE
  reco_warnings ${TORCH_LIBRARIES} ${reco_faiss} OpenMP::OpenMP_CXX Threads::Threads
  JPEG::JPEG PNG::PNG ZLIB::ZLIB PkgConfig::WebP PkgConfig::SentencePiece ICU::uc SQLite::SQLite3 nlohmann_json::nlohmann_json)
target_link_options(reco_core_dependencies INTERFACE LINKER:--exclude-libs,ALL)
