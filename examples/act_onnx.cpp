// Acts with an exported policy in C++: no Python, only ONNX Runtime.
//
//     g++ -std=c++17 act_onnx.cpp -I onnxruntime/include -L onnxruntime/lib -lonnxruntime -o act_onnx
//     ./act_onnx agent.onnx < observations
//
// A line of input is one step: 1 if an episode starts there, else 0, and the numbers of the observation. A line of output is
// the action.

#include <onnxruntime_cxx_api.h>

#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

// A tensor of one environment, zeros, in memory of its own
struct Input {
    std::vector<int64_t> shape;
    std::vector<float> floats;
    std::vector<int64_t> integers;

    explicit Input(const Ort::TypeInfo& type) {
        auto info = type.GetTensorTypeAndShapeInfo();
        shape = info.GetShape();
        shape[0] = 1;  // environments
        size_t count = 1;
        for (int64_t length : shape) count *= length;
        if (info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
            floats.resize(count);
        else if (info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64)
            integers.resize(count);
        else
            throw std::runtime_error("this program takes observations of float32 and int64");
    }

    Ort::Value tensor(const Ort::MemoryInfo& memory) {
        if (!floats.empty())
            return Ort::Value::CreateTensor<float>(memory, floats.data(), floats.size(), shape.data(), shape.size());
        return Ort::Value::CreateTensor<int64_t>(memory, integers.data(), integers.size(), shape.data(), shape.size());
    }
};

int run(const char* path) {
    Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "agent");
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);  // a step is too small to share
    Ort::Session session(env, path, options);
    Ort::AllocatorWithDefaultOptions allocator;
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);

    std::vector<std::string> input_names, output_names;
    for (size_t i = 0; i < session.GetInputCount(); i++) input_names.push_back(session.GetInputNameAllocated(i, allocator).get());
    for (size_t i = 0; i < session.GetOutputCount(); i++)
        output_names.push_back(session.GetOutputNameAllocated(i, allocator).get());
    std::vector<const char*> inputs, outputs;
    for (auto& name : input_names) inputs.push_back(name.c_str());
    for (auto& name : output_names) outputs.push_back(name.c_str());

    // The order of the inputs is obs, state.0, state.1, ..., episode_start; the state of the first step does not matter
    bool episode_start = true;
    int64_t one = 1;
    std::unique_ptr<Input> obs;
    std::vector<Ort::Value> values;
    std::vector<Input> empty;
    empty.reserve(inputs.size());
    for (size_t i = 0; i < inputs.size(); i++) {
        if (input_names[i] == "obs") {
            obs = std::make_unique<Input>(session.GetInputTypeInfo(i));
            values.push_back(obs->tensor(memory));
        } else if (input_names[i] == "episode_start") {
            values.push_back(Ort::Value::CreateTensor<bool>(memory, &episode_start, 1, &one, 1));
        } else {
            empty.emplace_back(session.GetInputTypeInfo(i));
            values.push_back(empty.back().tensor(memory));
        }
    }
    if (!obs) throw std::runtime_error("this program takes one observation named obs; Dict observations have several");

    std::string line;
    while (std::getline(std::cin, line)) {
        std::istringstream numbers(line);
        int start;
        bool complete = static_cast<bool>(numbers >> start);
        for (float& x : obs->floats) complete = complete && (numbers >> x);
        for (int64_t& x : obs->integers) complete = complete && (numbers >> x);
        if (!complete) throw std::runtime_error("a line is 0 or 1 and the numbers of an observation, got: " + line);
        episode_start = start != 0;

        auto results = session.Run(Ort::RunOptions{nullptr}, inputs.data(), values.data(), values.size(), outputs.data(),
                                   outputs.size());
        auto info = results[0].GetTensorTypeAndShapeInfo();
        for (size_t i = 0; i < info.GetElementCount(); i++) {
            if (i) std::cout << ' ';
            if (info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
                std::cout << results[0].GetTensorData<float>()[i];
            else
                std::cout << results[0].GetTensorData<int64_t>()[i];
        }
        std::cout << std::endl;
        // What comes out as the next state goes in as the state: the outputs after the action, in the order of the inputs
        size_t next = 1;
        for (size_t i = 0; i < inputs.size(); i++)
            if (input_names[i].rfind("state.", 0) == 0) values[i] = std::move(results[next++]);
    }
    return 0;
}

int main(int argc, char** argv) {
    if (argc != 2) {
        std::cerr << "usage: act_onnx agent.onnx < observations\n";
        return 2;
    }
    try {
        return run(argv[1]);
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
