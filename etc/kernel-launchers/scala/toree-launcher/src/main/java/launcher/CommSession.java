package launcher;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.io.OutputStream;
import java.net.Socket;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.security.SecureRandom;
import java.util.function.Function;

/**
 * One authenticated session (version 2) on the communication port.
 *
 * <p>The launcher opens with a challenge; each of the client's lines has the next number and a MAC over challenge,
 * number and command, so that nothing captured on the network can be replayed. The first line that is not authentic
 * ends the session.
 */
final class CommSession {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final SecureRandom RANDOM = new SecureRandom();

    private final Socket caller;
    private final byte[] key;
    private final Function<String, String> obey;
    private final String challenge;
    private long last;

    /**
     * Serves an accepted client.
     *
     * @param obey carries out a command; returns an error, or null on success
     */
    CommSession(Socket caller, byte[] key, Function<String, String> obey) {
        this.caller = caller;
        this.key = key;
        this.obey = obey;
        byte[] bytes = new byte[16];
        RANDOM.nextBytes(bytes);
        this.challenge = hex(bytes);
    }

    void run() throws IOException, GeneralSecurityException {
        caller.setTcpNoDelay(true);
        caller.setKeepAlive(true);
        LimitedReader reader = new LimitedReader(caller);
        send(JSON.createObjectNode().put("version", 2).put("challenge", challenge));
        String line = reader.readFirstLine();
        while (line != null) {
            JsonNode request = parse(line);
            if (!isAuthentic(request)) {
                throw new IOException("not authentic");
            }
            last = request.path("seq").longValue();
            answer(obey.apply(request.path("command").textValue()));
            line = reader.readLine();
        }
    }

    private static JsonNode parse(String line) throws IOException {
        try {
            return JSON.readTree(line);
        } catch (JsonProcessingException e) {
            throw new IOException("not JSON", e);
        }
    }

    private boolean isAuthentic(JsonNode request) throws GeneralSecurityException {
        JsonNode sequence = request.path("seq");
        JsonNode command = request.path("command");
        JsonNode mac = request.path("mac");
        if (!sequence.canConvertToLong() || !sequence.isIntegralNumber() || !command.isTextual() || !mac.isTextual()) {
            return false;
        }
        String expected = mac(key, challenge, sequence.longValue(), command.textValue());
        return MessageDigest.isEqual(Payload.ascii(expected), Payload.ascii(mac.textValue()))
                && sequence.longValue() == last + 1;
    }

    /** The MAC of one command, in hexadecimal. */
    static String mac(byte[] key, String challenge, long sequence, String command) throws GeneralSecurityException {
        return hex(Payload.hmac(key, Payload.ascii(challenge + "." + sequence + "." + command)));
    }

    private void answer(String error) throws IOException {
        ObjectNode reply = JSON.createObjectNode().put("seq", last).put("ok", error == null);
        send(error == null ? reply : reply.put("error", error));
    }

    private void send(JsonNode message) throws IOException {
        OutputStream output = caller.getOutputStream();
        output.write(Payload.ascii(message + "\n"));
        output.flush();
    }

    private static String hex(byte[] bytes) {
        StringBuilder text = new StringBuilder();
        for (byte b : bytes) {
            text.append(String.format("%02x", b));
        }
        return text.toString();
    }
}
