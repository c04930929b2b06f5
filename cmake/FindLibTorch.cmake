# Finds a LibTorch folder and links its libraries directly.
#
# The official TorchConfig.cmake asks for the CUDA toolkit as soon as the folder holds a CUDA build,
# even where nothing of ours is compiled by nvcc. We need the shared libraries and the headers alone.
#
#   LIBTORCH            in: the folder (the official archive, or `torch` of a wheel)
#   LibTorch::LibTorch  out: the target
#   LibTorch_VERSION, LibTorch_CUDA (TRUE when the folder holds the CUDA libraries)
set(LIBTORCH "$ENV{LIBTORCH}" CACHE PATH "LibTorch folder: the official archive or `torch` of a wheel")
if(NOT LIBTORCH)
  file(GLOB _libtorch_wheels "${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch")
  if(_libtorch_wheels)
    list(GET _libtorch_wheels 0 _libtorch_wheel)
    set(LIBTORCH "${_libtorch_wheel}" CACHE PATH "" FORCE)
  endif()
endif()

set(_libtorch_inc "${LIBTORCH}/include")
set(_libtorch_api "${_libtorch_inc}/torch/csrc/api/include")
if(EXISTS "${_libtorch_api}/torch/version.h")
  file(STRINGS "${_libtorch_api}/torch/version.h" _v REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH)")
elseif(EXISTS "${_libtorch_inc}/torch/headeronly/version.h")
  set(_v "")
endif()
if(EXISTS "${_libtorch_inc}/torch/headeronly/version.h")
  file(STRINGS "${_libtorch_inc}/torch/headeronly/version.h" _v
       REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH)")
endif()
string(REGEX REPLACE ".*MAJOR ([0-9]+).*MINOR ([0-9]+).*PATCH ([0-9]+).*" "\\1.\\2.\\3"
       LibTorch_VERSION "${_v}")

include(FindPackageHandleStandardArgs)
find_library(LibTorch_CPU_LIBRARY torch_cpu PATHS "${LIBTORCH}/lib" NO_DEFAULT_PATH)
find_package_handle_standard_args(LibTorch REQUIRED_VARS LibTorch_CPU_LIBRARY LIBTORCH
  VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE "no LibTorch in '${LIBTORCH}': run `make setup` or give LIBTORCH=/path")

if(LibTorch_FOUND AND NOT TARGET LibTorch::LibTorch)
  set(LibTorch_CUDA FALSE)
  set(_libs "${LIBTORCH}/lib/libtorch.so" "${LIBTORCH}/lib/libtorch_cpu.so" "${LIBTORCH}/lib/libc10.so")
  if(EXISTS "${LIBTORCH}/lib/libtorch_cuda.so")
    set(LibTorch_CUDA TRUE)
    list(APPEND _libs "${LIBTORCH}/lib/libtorch_cuda.so" "${LIBTORCH}/lib/libc10_cuda.so")
  endif()
  # at::parallel_for is a template over OpenMP: without the option every loop of ours would run on one
  # thread, silently. At run time LibTorch's own libgomp serves both.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set(_openmp -fopenmp)
    list(APPEND _libs gomp)
  else()
    message(WARNING "compiled without OpenMP: loops of ours run on one thread")
  endif()
  add_library(LibTorch::LibTorch INTERFACE IMPORTED)
  set_target_properties(LibTorch::LibTorch PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${_libtorch_inc};${_libtorch_api}"
    # The CUDA library registers its kernels when it is loaded, so it must stay although no symbol of
    # it is named here; what it needs itself (cuBLAS, cuDNN) it finds by its own run path.
    INTERFACE_LINK_LIBRARIES "-Wl,--no-as-needed;${_libs};-Wl,--as-needed"
    INTERFACE_COMPILE_OPTIONS "$<$<COMPILE_LANGUAGE:CXX>:${_openmp}>"
    INTERFACE_LINK_OPTIONS "-Wl,--allow-shlib-undefined;-Wl,-rpath,${LIBTORCH}/lib")
endif()
