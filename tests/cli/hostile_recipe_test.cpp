// Recipes that are damaged, and data that is.

#include "tests/cli/damaged_input.h"

namespace convpass::hostile {
namespace {

const std::vector<Case>& recipes() {
  static const std::vector<Case> cases{
      {"SyntaxError", file_with("recipe.json", "{\"train\": {\"epochs\": 3,}"), kCheck,
       "recipe.json", "not JSON: line 1"},
      {"Empty", file_with("recipe.json", ""), kCheck, "recipe.json", "not JSON"},
      {"NotAnObject", file_with("recipe.json", "[1, 2]"), kCheck, "recipe.json",
       "wanted an object"},
      {"NotUtf8", file_with("recipe.json", "{\"about\": {\"source\": \"caf\xe9\"}}"), kCheck,
       "recipe.json", "not JSON"},
      {"Binary", file_with("recipe.json", std::string("\x00\x1b[2J\xff\n\r{", 9)), kTrain,
       "recipe.json", "not JSON"},
      {"NestedWithoutEnd", file_with("recipe.json", std::string(200000, '[')), kCheck,
       "recipe.json", "nested too deeply"},
      {"FiveMegabytes", file_with("recipe.json", std::string(5 << 20, ' ')), kCheck, "recipe.json",
       "wanted a recipe of at most"},
      {"KeyTwice", file_with("recipe.json", R"({"train": {"seed": 1, "seed": 2}})"), kCheck,
       "/train/seed", "stands twice"},
      {"VariantWithoutEnd",
       recipe_with("{\"backbone\": {\"variant\": \"" + repeated("a", 60000) + "_b\"}}"), kTrain,
       "variant", "wanted at most 256"},
      {"UnknownKey", recipe_with(R"({"adapter": {"widht": 4}})"), kTrain, "/adapter/widht",
       "did you mean \"width\""},
      {"HostileKey",
       file_with("recipe.json", "{\"\\u001b[2J\\n" + std::string(9000, 'k') + "\": 1}"), kCheck,
       "recipe.json", "unknown key"},
      {"WrongType", recipe_with(R"({"train": {"epochs": "three"}})"), kTrain, "/train/epochs",
       "\"three\""},
      {"BatchOfNone", recipe_with(R"({"train": {"batch_size": 0}})"), kTrain, "/train/batch_size",
       "got 0"},
      {"NegativeRate", recipe_with(R"({"optimizer": {"lr": -1}})"), kTrain, "/optimizer/lr", "-1"},
      {"RateNotANumber", file_with("recipe.json", R"({"optimizer": {"lr": NaN}})"), kCheck,
       "recipe.json", "not JSON"},
      {"RateBeyondDouble", file_with("recipe.json", R"({"optimizer": {"lr": 1e999}})"), kCheck,
       "recipe.json", ""},
      {"EpochsBeyondInteger", recipe_with(R"({"train": {"epochs": 1e30}})"), kTrain,
       "/train/epochs", ""},
      {"EndlessEpochs", recipe_with(R"({"train": {"epochs": 9223372036854775807}})"), kTrain,
       "/train/epochs", "wanted"},
      {"GiantBatch", recipe_with(R"({"train": {"batch_size": 9223372036854775807}})"), kTrain,
       "/train/batch_size", "wanted"},
      {"GiantAccumulation", recipe_with(R"({"train": {"accumulate": 4611686018427387904}})"),
       kCheck, "/train/accumulate", "wanted"},
      {"GiantCache", recipe_with(R"({"data": {"cache_mb": 9223372036854775807}})"), kTrain,
       "/data/cache_mb", "wanted"},
      {"GiantImage", recipe_with(R"({"backbone": {"image_size": 4000000000}})"), kCheck,
       "/backbone/image_size", "wanted"},
      {"ImageNoMultipleOfThePatch", recipe_with(R"({"backbone": {"image_size": 18}})"), kCheck,
       "/backbone/image_size", "wanted a multiple of the patch size 4"},
      {"InputOfAnotherSize", recipe_with(R"({"input": {"size": 64}})"), kCheck, "input.size",
       "wanted the backbone's image size 16x16"},
      {"BlockOutOfRange", recipe_with(R"({"adapter": {"blocks": [0, 2]}})"), kCheck,
       "/adapter/blocks/1", "got 2, wanted 0 to 1"},
      {"SiteUnknown", recipe_with(R"({"adapter": {"sites": ["att"]}})"), kTrain, "/adapter/sites/0",
       "did you mean \"attn\""},
      {"VariantUnknown", recipe_with(R"({"backbone": {"variant": "vit_bass_patch16"}})"), kCheck,
       "/backbone/variant", "vit_bass_patch16"},
      {"VariantOfOtherWeights", recipe_with(R"({"backbone": {"variant": "vit_base_patch16"}})"),
       kCheck, "/backbone/variant", "width 32"},
      {"WeightsAbsent", recipe_with(R"({"backbone": {"weights": "none.npz"}})"), kTrain, "none.npz",
       "No such file"},
      {"WeightsAbsentForCheck", recipe_with(R"({"backbone": {"weights": "none.npz"}})"), kCheck,
       "/backbone/weights", "no such file"},
      {"WeightsWithZero", recipe_with("{\"backbone\": {\"weights\": \"a\\u0000b\\u001b\"}}"),
       kTrain, "recipe.json", ""},
      {"ExtendsItself", file_with("recipe.json", R"({"extends": "recipe.json"})"), kCheck,
       "/extends", "cannot extend itself"},
      {"ExtendsInACircle",
       [](const DamagedInput& t) {
         t.write("recipe.json", R"({"extends": "a.json"})");
         t.write("a.json", R"({"extends": "recipe.json"})");
       },
       kTrain, "a.json", "cannot extend itself"},
      {"ExtendsNothing", file_with("recipe.json", R"({"extends": "none.json"})"), kCheck,
       "none.json", "no such file"},
      {"ExtendsADevice", file_with("recipe.json", R"({"extends": "/dev/zero"})"), kCheck,
       "/dev/zero", "not a file"},
      {"Absent", nothing, "train none.json --out run", "none.json", "no such file"},
      {"Folder", nothing, "check images", "images", "not a file"},
      {"SetBroken", nothing, kCheck + " --set 'adapter.blocks=[1'", "--set", "not JSON"},
      {"SetThroughANumber", nothing, kCheck + " --set train.epochs.x=1", "/train/epochs", ""},
      {"ClassesFewerThanFolders", recipe_with(R"({"data": {"classes": 2}})"), kTrain,
       "images/train", "got 3 class folders"},
      {"TestLacksAClass",
       [](const DamagedInput& t) { fs::remove_all(t.folder() / "images/test/b"); }, kTrain,
       "data.test", "class \"b\""},
      {"BestValWithoutVal", recipe_with(R"({"select": "best_val", "data": {"val": null}})"), kTrain,
       "/select", "data.val"},
      {"NoTrainingData", recipe_with(R"({"data": {"train": null}})"), kTrain, "/data/train",
       "missing"},
  };
  return cases;
}

const std::vector<Case>& data() {
  static const std::vector<Case> cases{
      {"ListWithoutLabel", list("images/train/a/0.bmp 0\nimages/train/b/0.bmp\n"), kTrain,
       "l.txt:2", "no label"},
      {"ListLabelNegative", list("images/train/a/0.bmp -1\n"), kTrain, "l.txt:1", "\"-1\""},
      {"ListLabelBeyondInteger", list("images/train/a/0.bmp 99999999999999999999\n"), kTrain,
       "l.txt:1", "99999999999999999999"},
      {"ListLabelOutOfRange",
       [](const DamagedInput& t) {
         t.train_run();
         t.write("l.txt", "images/test/a/0.bmp 3\n");
       },
       kEval + "l.txt", "l.txt:1", "wanted 0 to 2"},
      {"ListImageMissing", list("images/train/a/0.bmp 0\nnone.bmp 1\n"), kTrain, "none.bmp",
       "1 of 2 images are missing"},
      {"ListEmpty", list(" \n\n"), kTrain, "l.txt", "an empty list"},
      {"ListBinary", list(std::string("\x1b[2J\xff\0\x07 \x1b]0;x\x07\n", 14)), kTrain, "l.txt:1",
       ""},
      {"ListBinaryForEval",
       [](const DamagedInput& t) {
         t.train_run();
         t.copy("images/photo.jpg", "photo.jpg");
       },
       kEval + "photo.jpg", "photo.jpg", ""},
      {"ListAbsent", good_run, kEval + "none", "none", "no such file"},
      {"ClassesOfOthers",
       [](const DamagedInput& t) {
         t.train_run();
         fs::rename(t.folder() / "images/test/c", t.folder() / "images/test/d");
       },
       kEval + "images/test", "images/test", "got 3 with \"d\", wanted 3 with \"c\""},
      {"ClassesTooMany",
       [](const DamagedInput& t) {
         t.train_run();
         t.write("images/test/d/0.bmp", t.read("images/test/a/0.bmp"));
       },
       kEval + "images/test", "images/test", "4 class folders"},
      {"FolderWithoutClasses",
       [](const DamagedInput& t) {
         t.train_run();
         fs::create_directories(t.folder() / "none");
       },
       kEval + "none", "none", "no class folders"},
      {"FolderClassEmpty",
       [](const DamagedInput& t) { fs::create_directories(t.folder() / "images/train/z/x.jpg"); },
       kTrain, "images/train/z", "without images"},
      {"FolderAbsent", recipe_with(R"({"data": {"train": {"path": "none"}}})"), kTrain, "none",
       "no such folder"},
      {"FolderImageText", training_image("x.jpg", "not an image"), kTrain, "data.train",
       "1 of 37 images cannot be read"},
      {"FolderImageEmpty", training_image("x.png", ""), kTrain, "data.train", "1 of 37"},
      {"FolderImageBomb", training_image("x.png", png_bomb()), kTrain, "data.train", "1 of 37"},
      {"FolderImageCut",
       [](const DamagedInput& t) {
         t.copy("images/png_rgb.png", "images/train/a/x.png");
         t.cut("images/train/a/x.png", "images/train/a/x.png");
       },
       kTrain, "data.train", "1 of 37"},
      {"IdxShort", idx(idx_images(9, 5), idx_labels(9)), kTrain, "i: idx", "wanted"},
      {"IdxOfNoHeader", idx("abc", idx_labels(9)), kTrain, "i: idx", "cut short"},
      {"IdxMagic", idx(idx_labels(9) + std::string(40, 'x'), idx_labels(9)), kTrain, "i: idx",
       "wanted 2051"},
      {"IdxSizesOverflow",
       idx(big_endian(0x803) + repeated(big_endian(0xffffffff), 3) + "x", idx_labels(9)), kTrain,
       "i: idx", "cannot be"},
      {"IdxGzipBomb", idx(gzip(idx_images(9, 400000)), idx_labels(9)), kTrain, "i: idx",
       "more than"},
      {"IdxGzipCut", idx(gzip(idx_images(9, 9)).substr(0, 30), idx_labels(9)), kTrain, "i: gzip",
       "cut short"},
      {"IdxLabelsMissing", idx(idx_images(9, 9), idx_labels(8)), kTrain, "l: idx", "got 8 labels"},
      {"NpzWithoutImages", npz_data({{"other.npy", npy("|u1", "(2,)", "ab")}}), kTrain, "d.npz",
       "no array \"images\""},
      {"NpzImagesOfFloats",
       npz_data({{"images.npy", npy("<f4", "(1, 1, 1)", "abcd")},
                 {"labels.npy", npy("|u1", "(1,)", "a")}}),
       kTrain, "d.npz", "wanted Byte"},
      {"NpzImagesOfFourColours",
       npz_data({{"images.npy", npy("|u1", "(1, 1, 1, 4)", "abcd")},
                 {"labels.npy", npy("|u1", "(1,)", "a")}}),
       kTrain, "d.npz", "wanted Byte"},
      {"NpzLabelsTooFew",
       npz_data({{"images.npy", npy("|u1", "(2, 1, 1)", "ab")},
                 {"labels.npy", npy("|u1", "(1,)", "a")}}),
       kTrain, "d.npz", "wanted whole numbers [2]"},
      {"NpzLabelsHostile",
       npz_data({{"images.npy", npy("|u1", "(1, 1, 1)", "a")},
                 {"labels.npy", npy("<i8", "(1,)", std::string(7, '\xff') + "\x7f")}}),
       kTrain, "d.npz", "got label"},
  };
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Recipe, HostileInput, testing::ValuesIn(recipes()), name_of);
INSTANTIATE_TEST_SUITE_P(Data, HostileInput, testing::ValuesIn(data()), name_of);

}  // namespace
}  // namespace convpass::hostile
