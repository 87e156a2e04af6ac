# The sources of each folder, added to a target that links dsmooth_flags; _C is made of all.
include_guard()
include(${CMAKE_CURRENT_LIST_DIR}/isa.cmake)

# Code that runs once per call, in which optimisation costs more than it gains.
function(optimize_little)
  set_source_files_properties(${ARGV} PROPERTIES COMPILE_OPTIONS -O1)
endfunction()

# The gated resnet on the CPU.
function(add_gated_resnet target)
  set(here ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/gated_resnet)
  target_sources(${target} PRIVATE ${here}/gated_resnet.cpp)
  optimize_little(${here}/gated_resnet.cpp)
  compile_for_instruction_sets(${target} ${here}/forward_backward.cpp ${here}/gated_resnet.cpp RESNET_SETS
    generic avx2 neon)
  # For float32: without instructions for bfloat16, that takes the code of AVX2.
  compile_for_instruction_sets(${target} ${here}/forward_backward.cpp ${here}/gated_resnet.cpp WIDE_SETS
    avx512)
  # For bfloat16: all else would be the code of AVX-512 again.
  compile_for_instruction_sets(${target} ${here}/forward_backward.cpp ${here}/gated_resnet.cpp PAIR_SETS
    avx512bf16 amx)
  foreach(name avx2 avx512 avx512bf16 amx neon)  # a tenth faster; the generic set is not
    if(TARGET gated_resnet_forward_backward_${name})
      target_compile_options(gated_resnet_forward_backward_${name} PRIVATE $<$<CONFIG:Release>:-O3>)
    endif()
  endforeach()
endfunction()

# The loss on the CPU.
function(add_logistic_mixture target)
  set(here ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/logistic_mixture)
  target_sources(${target} PRIVATE ${here}/logistic_mixture.cpp)
  optimize_little(${here}/logistic_mixture.cpp)
  compile_for_instruction_sets(${target} ${here}/forward_backward.cpp ${here}/logistic_mixture.cpp LOSS_SETS
    generic avx2 avx512 neon)
endfunction()

# The sampler. Its tiles are compiled per instruction set (AVX-512 supports bfloat16 only with its
# BF16 extension); all other code is portable.
function(add_sampler target)
  set(here ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/sampler)
  target_sources(${target} PRIVATE ${here}/program/program.cpp ${here}/program/skeleton.cpp
    ${here}/cuda/sampler.cpp ${here}/cpu/sampler.cpp)
  optimize_little(${here}/program/program.cpp ${here}/program/skeleton.cpp)
  compile_for_instruction_sets(${target} ${here}/cpu/float32.cpp ${here}/cpu/sampler.cpp
    FLOAT32_SETS generic avx2 avx512 neon)
  compile_for_instruction_sets(${target} ${here}/cpu/bfloat16.cpp ${here}/cpu/sampler.cpp
    BFLOAT16_SETS generic avx2 avx512bf16 amx neon)
  find_package(Threads REQUIRED)
  target_link_libraries(${target} PRIVATE Threads::Threads)
endfunction()

# The Python module _C.
function(add_extension)
  set(here ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/bindings)
  find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
  set(PYBIND11_FINDPYTHON ON)
  find_package(pybind11 2.13 CONFIG REQUIRED)
  # NO_EXTRAS: no link-time optimisation, which could move code between instruction sets.
  pybind11_add_module(_C MODULE NO_EXTRAS ${here}/module.cpp)
  optimize_little(${here}/module.cpp)
  target_link_libraries(_C PRIVATE dsmooth_flags)
  add_gated_resnet(_C)
  add_logistic_mixture(_C)
  add_sampler(_C)
endfunction()
