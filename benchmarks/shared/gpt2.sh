# gpt2.sh: GPT-2's shapes in the benchmarks of the CPU device; sourced after tests/shared/system.sh. The
# vocabulary has 50257 tokens.

# gpt2_small FILE POSITIONS: a model of 6 layers and 384 channels (27 M parameters) for --model.
gpt2_small() {
    cat >"$1" <<END
{"model_type": "gpt2", "n_layer": 6, "n_embd": 384, "n_head": 6, "n_positions": $2, "vocab_size": 50257,
 "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"}
END
}
# gpt2_flops MODEL T: of a token in a step, without computing anything twice; causal attention by half.
gpt2_flops() {
    local layers=6 channels=384 # gpt2_small's, and gpt-mini's
    case $1 in
    *124m) layers=12 channels=768 ;;
    *355m) layers=24 channels=1024 ;;
    *774m) layers=36 channels=1280 ;;
    *1558m) layers=48 channels=1600 ;;
    esac
    awk -v l=$layers -v c=$channels -v t="$2" 'BEGIN { printf "%.0f", 6 * (12 * l * c * c + 50257 * c + l * c * t) }'
}
