# SPDX-License-Identifier: Apache-2.0
# `cmake --install BUILD --component cpp` for C++ applications: find_package(reco), target reco::reco.
set_target_properties(reco PROPERTIES INSTALL_RPATH "$ORIGIN;${TORCH_INSTALL_PREFIX}/lib")
install(TARGETS reco reco_headers EXPORT recoTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT cpp NAMELINK_COMPONENT cpp
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT cpp)
install(DIRECTORY include/reco DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT cpp)
install(EXPORT recoTargets NAMESPACE reco:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/reco COMPONENT cpp)
configure_package_config_file(cmake/recoConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/recoConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/reco)
write_basic_package_version_file(recoConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/recoConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/recoConfigVersion.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/reco COMPONENT cpp)
