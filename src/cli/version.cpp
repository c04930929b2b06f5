#include "convpass/core/device.h"
#include "convpass/data/image.h"
#include "src/cli/commands.h"

namespace convpass::cli {

std::string version() { return version_text() + "OpenCV " + opencv_version() + "\n"; }

}  // namespace convpass::cli
