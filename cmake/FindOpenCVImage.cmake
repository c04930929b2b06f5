# Finds the three OpenCV libraries that decode and filter images. Debian's small packages
# (libopencv-imgcodecs-dev, ...) hold them without the configuration file of the large libopencv-dev.
#
#   OpenCVImage::OpenCVImage  out: the target
find_path(OpenCVImage_INCLUDE_DIR opencv2/imgcodecs.hpp PATH_SUFFIXES opencv4)
set(_opencv_required OpenCVImage_INCLUDE_DIR)
foreach(_module core imgproc imgcodecs)
  find_library(OpenCVImage_${_module}_LIBRARY opencv_${_module})
  list(APPEND _opencv_required OpenCVImage_${_module}_LIBRARY)
endforeach()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OpenCVImage REQUIRED_VARS ${_opencv_required}
  REASON_FAILURE_MESSAGE "run `make setup`, or install OpenCV's core, imgproc and imgcodecs")

if(OpenCVImage_FOUND AND NOT TARGET OpenCVImage::OpenCVImage)
  add_library(OpenCVImage::OpenCVImage INTERFACE IMPORTED)
  set_target_properties(OpenCVImage::OpenCVImage PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${OpenCVImage_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES
    "${OpenCVImage_imgcodecs_LIBRARY};${OpenCVImage_imgproc_LIBRARY};${OpenCVImage_core_LIBRARY}")
endif()
