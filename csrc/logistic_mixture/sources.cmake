# The loss on the CPU, added to a target that links dsmooth_flags.
include(${CMAKE_CURRENT_LIST_DIR}/../isa.cmake)

function(add_logistic_mixture target)
  set(here ${CMAKE_CURRENT_FUNCTION_LIST_DIR})
  target_sources(${target} PRIVATE ${here}/dispatch.cpp ${here}/operands.cpp)
  compile_for_instruction_sets(${target} ${here}/block.cpp ${here}/dispatch.cpp LOSS_SETS
    generic avx2 avx512)
endfunction()
