# The kernels without Python: normkit_kernels, a static library; tests/kernels/sanitize builds it too.
#
# The same sources are compiled once per instruction set, each in a namespace of its name. The baseline comes
# first: where a template of the standard library is not inlined, the linker keeps the first copy, and that one
# must run everywhere.

set(NORMKIT_ISAS baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  list(APPEND NORMKIT_ISAS avx2 avx512)
  set(NORMKIT_FLAGS_avx2 -mavx2 -mfma -mf16c)
  set(NORMKIT_FLAGS_avx512 ${NORMKIT_FLAGS_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq)
endif()

add_library(normkit_kernels STATIC ${CMAKE_CURRENT_LIST_DIR}/isa.cpp
            ${CMAKE_CURRENT_LIST_DIR}/memory.cpp ${CMAKE_CURRENT_LIST_DIR}/pool.cpp ${CMAKE_CURRENT_LIST_DIR}/dlpack.cpp)
target_include_directories(normkit_kernels PUBLIC ${CMAKE_CURRENT_LIST_DIR})
if(OpenMP_CXX_FOUND)
  target_link_libraries(normkit_kernels PUBLIC OpenMP::OpenMP_CXX)
endif()

foreach(isa IN LISTS NORMKIT_ISAS)
  add_library(normkit_${isa} OBJECT)
  foreach(source family channels group_runs groups mixtures rows running)
    target_sources(normkit_${isa} PRIVATE ${CMAKE_CURRENT_LIST_DIR}/${source}.cpp)
  endforeach()
  target_compile_definitions(normkit_${isa} PRIVATE NORMKIT_ISA=${isa})
  # No contraction: a fused multiply-add stands where it is written. No errno: square roots are instructions.
  target_compile_options(normkit_${isa} PRIVATE $<$<CONFIG:Release>:-O3> -fno-math-errno -ffp-contract=off -Wno-psabi ${NORMKIT_FLAGS_${isa}})
  if(OpenMP_CXX_FOUND)
    target_link_libraries(normkit_${isa} PRIVATE OpenMP::OpenMP_CXX)
  endif()
  target_sources(normkit_kernels PRIVATE $<TARGET_OBJECTS:normkit_${isa}>)
endforeach()
if(NORMKIT_FLAGS_avx2)
  target_compile_definitions(normkit_kernels PUBLIC NORMKIT_X86)
endif()
