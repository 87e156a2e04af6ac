# The Python module _C, from all rooms. A target dsmooth_flags must be there.
foreach(room gated_resnet logistic_mixture sampler)
  include(${CMAKE_CURRENT_LIST_DIR}/../${room}/sources.cmake)
endforeach()

function(add_extension)
  set(here ${CMAKE_CURRENT_FUNCTION_LIST_DIR})
  find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
  set(PYBIND11_FINDPYTHON ON)
  find_package(pybind11 2.13 CONFIG REQUIRED)
  set(sources module gated_resnet logistic_mixture sampler)
  list(TRANSFORM sources REPLACE ".+" "${here}/\\0.cpp")
  # NO_EXTRAS: no link-time optimisation, which could move code between instruction sets.
  pybind11_add_module(_C MODULE NO_EXTRAS ${sources} ${here}/borrow.cpp)
  # These only convert arguments: -O1 saves time.
  set_source_files_properties(${sources} PROPERTIES COMPILE_OPTIONS -O1)
  target_link_libraries(_C PRIVATE dsmooth_flags)
  add_gated_resnet(_C)
  add_logistic_mixture(_C)
  add_sampler(_C)
endfunction()
