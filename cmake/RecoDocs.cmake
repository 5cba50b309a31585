# SPDX-License-Identifier: Apache-2.0
# `cmake --build BUILD --target docs` renders the reference: of the public headers with Doxygen, of the Python package
# with pdoc, each where its program is installed.
set(RECO_DOCS_DIR ${PROJECT_SOURCE_DIR}/build/docs CACHE PATH "Where the rendered reference goes: cpp/ and python/")
find_program(RECO_DOXYGEN doxygen)
execute_process(COMMAND ${Python_EXECUTABLE} -c "import pdoc" RESULT_VARIABLE reco_no_pdoc OUTPUT_QUIET ERROR_QUIET)

add_custom_target(docs)
if(RECO_DOXYGEN)
  configure_file(cmake/Doxyfile.in ${CMAKE_CURRENT_BINARY_DIR}/Doxyfile @ONLY)
  add_custom_target(docs_cpp
    COMMAND ${CMAKE_COMMAND} -E make_directory ${RECO_DOCS_DIR}
    COMMAND ${RECO_DOXYGEN} ${CMAKE_CURRENT_BINARY_DIR}/Doxyfile
    COMMENT "Reference of the headers: ${RECO_DOCS_DIR}/cpp/index.html" VERBATIM)
  add_dependencies(docs docs_cpp)
endif()
if(NOT reco_no_pdoc)
  add_custom_target(docs_python
    COMMAND ${CMAKE_COMMAND} -E make_directory ${RECO_DOCS_DIR}
    COMMAND ${Python_EXECUTABLE} -m pdoc -d numpy -o ${RECO_DOCS_DIR}/python reco reco.datasets reco.duplicates reco.embedding reco.embedding_cluster
            reco.embedding_folder reco.embedding_source reco.evaluation reco.exchange reco.explanation reco.milvus reco.neighbors_cluster reco.plotting
            reco.progress reco.types
    COMMENT "Reference of the Python package: ${RECO_DOCS_DIR}/python/index.html" VERBATIM)
  add_dependencies(docs docs_python)
endif()
