# SPDX-License-Identifier: Apache-2.0
# `cmake --install BUILD --component cpp` for C++ applications: find_package(reco) with target reco::reco, and pkg-config.
# A wheel holds the same below site-packages/reco: `python -m reco --cmake-dir` says where.

# Installs a library, its headers and its CMake package below `prefix`; `torch` is the folder in which the library
# looks for LibTorch, seen from the CMake package where it is relative. What follows goes to install(... LIBRARY).
function(reco_install target component prefix torch)
  set(library ${prefix}${CMAKE_INSTALL_LIBDIR})
  set(package ${library}/cmake/reco)
  install(TARGETS ${target} reco_headers EXPORT ${target}Targets
    LIBRARY DESTINATION ${library} COMPONENT ${component} ${ARGN}
    ARCHIVE DESTINATION ${library} COMPONENT ${component}
    INCLUDES DESTINATION ${prefix}${CMAKE_INSTALL_INCLUDEDIR})
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/reco DESTINATION ${prefix}${CMAKE_INSTALL_INCLUDEDIR}
    COMPONENT ${component})
  install(EXPORT ${target}Targets FILE recoTargets.cmake NAMESPACE reco:: DESTINATION ${package} COMPONENT ${component})
  set(RECO_TORCH_LIBRARIES ${torch})
  configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/recoConfig.cmake.in
    ${CMAKE_CURRENT_BINARY_DIR}/${target}/recoConfig.cmake INSTALL_DESTINATION ${package})
  write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/${target}/recoConfigVersion.cmake
    COMPATIBILITY SameMinorVersion)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/${target}/recoConfig.cmake
    ${CMAKE_CURRENT_BINARY_DIR}/${target}/recoConfigVersion.cmake DESTINATION ${package} COMPONENT ${component})
endfunction()

# A static library would need what it is made of, too: those who want one add reco as a subproject.
if(RECO_LIBRARY_TYPE STREQUAL SHARED)
  set_target_properties(reco PROPERTIES INSTALL_RPATH "$ORIGIN;${TORCH_INSTALL_PREFIX}/lib")
  reco_install(reco cpp "" ${TORCH_INSTALL_PREFIX}/lib)
  install(FILES LICENSE examples/icons/clip/LICENSE-vocabulary.txt DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/reco
    COMPONENT cpp)
  file(RELATIVE_PATH RECO_PREFIX_OF_PC /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
  configure_file(cmake/reco.pc.in ${CMAKE_CURRENT_BINARY_DIR}/reco.pc @ONLY)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/reco.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT cpp)
endif()
